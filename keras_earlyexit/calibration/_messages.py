"""What `calibrate` says: what is promised, or why nothing is."""

import numpy as np

from keras_earlyexit.calibration.reports import thresholds_text
from keras_earlyexit.calibration.risk_control import control_risk

_MOST_SAMPLES = 2**22


def promise(epsilon, delta, method, max_cost):
    """What holds for new samples, in a sentence."""
    if method == "empirical":
        more = "" if max_cost is None else f" and the cost below {max_cost:g}"
        return (
            f"The risk on these samples is below {epsilon:g}{more}; nothing "
            "is promised for others."
        )
    if method == "crc":
        return (
            f"On average over calibration sets, the risk is at most {epsilon:g}"
            " for new samples like these."
        )
    more = ""
    if max_cost is not None:
        more = f" and the mean relative cost at most {max_cost:g}"
    return (
        f"With probability {1 - delta:g} over calibration sets, the risk is "
        f"at most {epsilon:g}{more} for new samples like these."
    )


def apology(walk, found, seen, risks, delta, method, max_cost):
    """Why nobody leaves early, and what to do about it.

    Args:
        walk: The `Walk`.
        found: What `control_risks` returned.
        seen: The `Observations`.
        risks: The `Risk`s of answers and, with `max_cost`, of cost.
        delta: The chance of a wrong answer that each of them was given.
        method: As in `control_risk`.
        max_cost: The mean relative cost that was allowed, or `None`.
    """
    epsilon, bound = risks[0].epsilon, risks[0].bound
    n, needed = len(seen), samples_needed(epsilon, delta, method, bound)
    if n < needed:
        more = "more" if needed > _MOST_SAMPLES else f"at least {needed}"
        return (
            f"Nobody leaves early: {n} calibration samples are too few to "
            f"vouch for a risk of {epsilon:g} (method {method!r}, delta "
            f"{delta:g}), even if no answer changes. Pass {more}, or allow a "
            "larger `epsilon`."
        )
    early = walk.thresholds.reshape(len(walk.thresholds), -1) < np.inf
    early = early.any(axis=1)
    if max_cost is not None and (found.admissible_by_risk[0] & early).any():
        return _cost_apology(walk, found, risks, method, max_cost)
    measured = "there is only one distinct score"
    if early.any():
        first = early.argmax()
        measured = (
            f"at the largest one, {thresholds_text(walk.thresholds[first])}, "
            f"it is {walk.risks[first]:.4f} on these samples and up to "
            f"{walk.bounds[first]:.4f}"
        )
    return (
        f"Nobody leaves early: no threshold keeps the risk within {epsilon:g} "
        f"by method {method!r}; {measured}. Allow a larger `epsilon`, train "
        "the exits for longer, or choose another policy."
    )


def _cost_apology(walk, found, risks, method, max_cost):
    """The risk can be kept, but not at this cost."""
    cheapest = np.flatnonzero(found.admissible_by_risk[0])[-1]
    text = (
        "Nobody leaves early, at the cost of the whole model: the mean "
        f"relative cost cannot be kept within {max_cost:g} together with the "
        f"risk within {risks[0].epsilon:g}, by method {method!r}. The smallest "
        "threshold that keeps the risk, "
        f"{thresholds_text(walk.thresholds[cheapest])}, costs "
        f"{walk.relative_costs[cheapest]:.4f} on these samples and up to "
        f"{walk.cost_bounds[cheapest]:.4f}"
    )
    affordable = np.flatnonzero(found.admissible_by_risk[1])
    if len(affordable):
        first = affordable[0]
        text += (
            "; the largest one that keeps the cost, "
            f"{thresholds_text(walk.thresholds[first])}, has a risk of "
            f"{walk.risks[first]:.4f} and up to {walk.bounds[first]:.4f}"
        )
    return f"{text}. Allow a larger `epsilon` or `max_cost`."


def samples_needed(epsilon, delta, method, bound):
    """Fewest samples by which a loss that is always 0 is under control."""

    def enough(n):
        zeros = np.zeros((n, 1), "float32")
        found = control_risk(zeros, [0.0], epsilon, delta, method, bound)
        return found == 0.0

    high = 1
    while not enough(high):
        high *= 2
        if high > _MOST_SAMPLES:
            return high
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high
