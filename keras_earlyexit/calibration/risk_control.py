"""Chooses the smallest exit threshold whose risk is under control.

Why the walk: a threshold is taken only together with all larger ones. The
guarantees of the upper bounds and of fixed-sequence testing rest on that
order, and it also shields the simpler rules from a measured risk that is not
monotone, which happens on real data.
"""

import typing

import numpy as np

from keras_earlyexit.calibration import _checks, _walks


class Risk(typing.NamedTuple):
    """One of several risks that `control_risks` keeps at once.

    Args:
        losses: Array (n, L); column j holds every sample's loss at
            `thresholds[j]`, in [-bound, bound].
        epsilon: The risk that is allowed, in units of the loss, in (0, 1).
        bound: The largest absolute loss.
        grows: Whether the risk grows with the threshold, as cost does; others
            fall, as what early answers lose does.
        name: What it is called in messages.
    """

    losses: np.ndarray
    epsilon: float
    bound: float = 1.0
    grows: bool = False
    name: str = "risk"


class Controlled(typing.NamedTuple):
    """What `control_risks` found.

    Args:
        threshold: The threshold, or a tuple (E,); `inf` if there is none.
        index: Its column in the losses, or `None`.
        admissible: Bool array (L,), where all risks are under control.
        admissible_by_risk: Bool array (risks, L), the same for each of them.
    """

    threshold: float | tuple
    index: int | None
    admissible: np.ndarray
    admissible_by_risk: np.ndarray


def control_risk(
    losses,
    thresholds,
    epsilon,
    delta=0.1,
    method="ucb",
    bound=1.0,
    assume_monotone=False,
):
    """Smallest threshold that keeps the risk within `epsilon`.

    A sample leaves where its score is strictly above the threshold t, so the
    largest threshold is the safest and the smallest the fastest. With n
    samples, mean loss M(t) and B = `bound`, threshold t is admissible by

    - `empirical`: M(t) < epsilon. No guarantee.
    - `crc`: (n M(t) + B) / (n + 1) <= epsilon. E[risk] <= epsilon, on average
      over calibration sets.
    - `ucb`: U(t) < epsilon. P(risk <= epsilon) >= 1 - delta.
    - `ucb_hb`: H(t) < epsilon. The same.
    - `ltt`: p(t) <= delta. The same.

    U is `wsr_upper_bound`. H and p are the Hoeffding-Bentkus upper bound and
    p-value of losses clipped at 0 and divided by B, against epsilon / B; if
    all of these are 0 or 1, `ltt` takes the exact binomial tail.

    The answer is the smallest threshold that is admissible together with all
    larger ones. With a threshold for each early exit the rows are walked as
    they come, the most careful one first, and the answer is the last one
    before the first that is not admissible.

    All guarantees need a calibration set that was used for nothing else, and
    thresholds that were fixed beforehand. `crc` also needs a risk that does
    not fall along the walk; testing one after the other and stopping at the
    first failure spares the others that.
    Losses below 0 (an early exit that beats the full model) help
    `empirical`, `crc` and `ucb` only.

    Args:
        losses: array (n, L); column j holds every sample's loss at
            `thresholds[j]`, in [-bound, bound].
        thresholds: array (L,), strictly increasing or strictly decreasing,
            in units of the score; or (L, E), one for each early exit in every
            row. For `crc` and `assume_monotone` no threshold may then be above
            that of the row before.
        epsilon: the risk that is allowed, in units of the loss, in (0, 1).
        delta: the chance that the risk is above `epsilon` all the same, in
            (0, 1). Not used by `empirical` and `crc`.
        method: `empirical`, `crc`, `ucb`, `ucb_hb` or `ltt`.
        bound: B, the largest absolute loss: 1 for zero-one, 2 for Brier.
        assume_monotone: take the smallest admissible threshold anywhere,
            even below one that is not. Changes `empirical` and `crc` only:
            the others have no guarantee without the walk.

    Returns:
        The threshold, a float, or a tuple (E,) for rows. `inf`, so that
        nobody leaves, if there is none: promise nothing about speed from a
        successful call.

    Raises:
        ValueError: if `losses` is empty, holds NaN or leaves
            [-bound, bound]; if `thresholds` does not match it or is not
            strictly monotone; if `epsilon`, `delta`, `bound` or `method` is
            out of range.
        TypeError: if `losses` or `thresholds` does not hold real numbers.

    Example:

    >>> import numpy as np
    >>> thresholds = np.array([0.9, 0.7, 0.5])
    >>> losses = np.zeros((200, 3))
    >>> losses[:4, 1] = 1  # two samples in a hundred differ
    >>> losses[:40, 2] = 1
    >>> control_risk(losses, thresholds, epsilon=0.05, method="crc")
    0.7
    >>> control_risk(losses, thresholds, epsilon=0.002, method="crc")
    inf

    Reference: Jazbec et al., "Fast yet Safe: Early-Exiting with Risk
    Control", 2024 (arXiv 2405.20915).
    """
    epsilon = _checks.fraction(
        "epsilon", epsilon, "It is the risk that is allowed, for example 0.02."
    )
    delta = _checks.fraction(
        "delta", delta, "It is the chance of a wrong answer, for example 0.1."
    )
    bound = _checks.positive(
        "bound", bound, "It is the largest loss: 1 for zero-one, 2 for Brier."
    )
    rule = _walks.find_rule(method)
    losses = _checks.bounded_losses(losses, bound, (2,))
    anywhere = assume_monotone and method in ("empirical", "crc")
    nested = anywhere or method == "crc"
    thresholds = _walks.check_thresholds(thresholds, losses, nested)
    order = _walks.walk_order(thresholds)
    admissible = rule(losses[:, order], epsilon, delta, bound)
    if not anywhere:
        admissible = np.logical_and.accumulate(admissible)
    chosen = order[admissible]
    return _walks.threshold_at(thresholds, chosen[-1] if len(chosen) else None)


def control_risks(risks, thresholds, delta=0.1, method="ucb", costs=None):
    """Threshold at which several risks are under control at once.

    Each risk is walked from its own careful end, the largest threshold, or
    the smallest for one that `grows` with it, by the rule of `control_risk`
    and by its mean loss itself, M(t) < epsilon. What lies before the first
    failure is admissible for it, and the answer is admissible for all.

    With `ucb`, `ucb_hb` and `ltt`, P(all risks of the answer are within their
    epsilon) >= 1 - delta. Why: the hypothesis that some risk is above its
    epsilon is rejected at a level only if that risk's own test rejects at that
    level, so risks that are walked together share it without a correction.
    Where there are risks of both directions there are two walks, at delta / 2
    each. `crc` promises means, which do not add up over two directions.

    Args:
        risks: List of `Risk`, or of tuples (losses, epsilon, ...) in its
            order, all from the same n samples.
        thresholds: Array (L,) or (L, E), as in `control_risk`.
        delta: The chance that a risk is above its `epsilon` all the same, in
            (0, 1).
        method: As in `control_risk`; `crc` for risks of one direction only.
        costs: Array (L,), mean costs: of the admissible thresholds the
            cheapest is taken. `None`: the last of the walk, the smallest.

    Returns:
        `Controlled`.

    Raises:
        ValueError: As `control_risk`; or if there is no risk, if they differ
            in shape, or if `crc` is to keep risks of both directions.
        TypeError: As `control_risk`.

    Example:

    >>> import numpy as np
    >>> thresholds = np.array([0.9, 0.7, 0.5])
    >>> differs = np.zeros((500, 3))
    >>> differs[:200, 2] = 1
    >>> deeper = np.ones((500, 3))  # who does not leave costs more
    >>> deeper[:400, 1:] = 0
    >>> found = control_risks(
    ...     [Risk(differs, 0.05), Risk(deeper, 0.3, grows=True)], thresholds
    ... )
    >>> found.threshold, found.admissible
    (0.7, array([False,  True, False]))

    Reference: Angelopoulos et al., "Learn then test", 2021
    (arXiv 2110.01052).
    """
    delta = _checks.fraction(
        "delta", delta, "It is the chance of a wrong answer, for example 0.1."
    )
    rule = _walks.find_rule(method)
    risks = _check_risks(risks)
    directions = len({risk.grows for risk in risks})
    if method == "crc" and directions == 2:
        raise ValueError(
            "Expected risks that all fall, or all grow, with the threshold "
            "for method='crc'. Received: "
            f"{[(risk.name, risk.grows) for risk in risks]}. Take 'ucb' or "
            "'ltt'."
        )
    nested = method == "crc"
    thresholds = _walks.check_thresholds(thresholds, risks[0].losses, nested)
    order = _walks.walk_order(thresholds)
    by_risk = np.zeros((len(risks), len(order)), bool)
    for kept, risk in zip(by_risk, risks, strict=True):
        walk = order[::-1] if risk.grows else order
        losses = risk.losses[:, walk]
        options = (risk.epsilon, delta / directions, risk.bound)
        passed = rule(losses, *options) & _walks.empirical(losses, *options)
        kept[walk] = np.logical_and.accumulate(passed)
    admissible = by_risk.all(axis=0)
    chosen = order[admissible[order]]
    index = int(chosen[-1]) if len(chosen) else None
    if costs is not None and len(chosen):
        costs = _checks.numeric("costs", costs)
        _checks.same_length("costs", costs, "thresholds", thresholds)
        index = int(chosen[costs[chosen].argmin()])
    threshold = _walks.threshold_at(thresholds, index)
    return Controlled(threshold, index, admissible, by_risk)


def _check_risks(risks):
    """The risks as `Risk`, each with its arguments checked."""
    found = []
    for risk in risks:
        risk = Risk(*risk)
        epsilon = _checks.fraction(
            "epsilon", risk.epsilon, f"It belongs to {risk.name!r}."
        )
        bound = _checks.positive(
            "bound", risk.bound, f"It belongs to {risk.name!r}."
        )
        losses = _checks.bounded_losses(risk.losses, bound, (2,))
        found.append(risk._replace(losses=losses, epsilon=epsilon, bound=bound))
    shapes = [risk.losses.shape for risk in found]
    if len(set(shapes)) != 1:
        raise ValueError(
            "Expected at least one risk, and losses of the same shape (n, L) "
            f"for all of them. Received shapes {shapes}. Measure all risks of "
            "the same samples at the same thresholds."
        )
    return found
