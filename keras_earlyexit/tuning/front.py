"""Of many ways to spend, those that no other beats."""

import numpy as np


def pareto_front(costs, values):
    """Which points no other point beats: cheaper, better, or both.

    A point is beaten by one that costs no more and is worth no less, and that
    differs from it. Of equal points the first stays. Points with NaN, such as
    trials that failed, are never on the front.

    Args:
        costs: Array (n,), what each point costs; less is better.
        values: Array (n,), what each is worth, such as accuracy; more is
            better. For errors pass them negated.

    Returns:
        Integer array of the rows on the front, in the order of rising cost,
        along which values rise too. Empty for no points.

    Raises:
        ValueError: If these are not two arrays of numbers of one length.

    Example:

    ```python
    rows = ee.tuning.pareto_front([0.3, 0.5, 0.6], [0.90, 0.94, 0.93])
    print(rows)  # [0 1]
    ```
    """
    costs, values = _numbers("costs", costs), _numbers("values", values)
    if costs.shape != values.shape:
        raise ValueError(
            "Expected a cost and a value for each point. Received: "
            f"{len(costs)} costs and {len(values)} values."
        )
    rows = np.flatnonzero(~(np.isnan(costs) | np.isnan(values)))
    # Stable, so that the first of equal points comes first.
    rows = rows[np.lexsort((-values[rows], costs[rows]))]
    best = np.maximum.accumulate(values[rows])
    better = np.ones(len(rows), bool)
    better[1:] = values[rows[1:]] > best[:-1]
    return rows[better]


def _numbers(name, given):
    try:
        found = np.asarray(given, "float64")
    except (TypeError, ValueError):
        found = None
    if found is None or found.ndim != 1:
        raise ValueError(
            f"Expected `{name}` to be an array (n,) of numbers. Received: "
            f"{name}={given!r} (of type {type(given).__name__})."
        )
    return found
