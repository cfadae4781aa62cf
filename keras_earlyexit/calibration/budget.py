"""Thresholds for a budget: how many samples may leave where.

Why shares: one threshold for all exits follows from scores that mean the same
everywhere, which they need not. Here each exit gets the threshold by which its
share of the samples leaves, and the shares follow from the mean cost that is
to be spent.
"""

import numpy as np

from keras_earlyexit.calibration import _checks, _samples
from keras_earlyexit.calibration.reports import BudgetReport

# ln p is looked for between these: beyond, a share is a rounding error.
_LARGEST_LOG = 60.0


def exit_shares_for(budget, relative_costs):
    """Shares of samples by exit whose mean cost is a budget.

    The shares are geometric, a_i = p^i / (1 + p + ... + p^E), with the p for
    which sum_i a_i c_i is the budget: more than the first exit's cost, all
    samples at one exit, is spent on some samples by going deeper.

    Args:
        budget: Mean relative cost, between the first and the last of
            `relative_costs`.
        relative_costs: Array (E + 1,), strictly increasing, `final` last.

    Returns:
        Float array (E + 1,) that sums to 1.

    Raises:
        ValueError: If the budget cannot be met, or if costs do not increase.

    Example:

    >>> exit_shares_for(0.5, [0.25, 0.5, 0.75]).round(3)
    array([0.333, 0.333, 0.333])
    >>> exit_shares_for(0.25, [0.25, 0.5, 0.75])
    array([1., 0., 0.])

    Reference: Huang et al., "Multi-scale dense networks for resource
    efficient image classification", 2018 (arXiv 1703.09844).
    """
    costs = _check_costs(relative_costs)
    budget = _check_budget(budget, costs)
    ends = {costs[0]: 0, costs[-1]: -1}
    if budget in ends:
        shares = np.zeros(len(costs))
        shares[ends[budget]] = 1.0
        return shares
    # The mean cost grows with p.
    low, high = -_LARGEST_LOG, _LARGEST_LOG
    for _ in range(100):
        middle = (low + high) / 2
        if _geometric(middle, len(costs)) @ costs < budget:
            low = middle
        else:
            high = middle
    return _geometric(low, len(costs))


def thresholds_for_shares(seen, shares):
    """Thresholds by which given shares of the samples leave.

    Exit after exit, of the samples that are still inside the floor(n a_i)
    with the largest scores leave. Where equal scores stand at the border none
    of them leaves: fewer then do than asked for, never more. A threshold is
    set in the middle between the last score that leaves and the first that
    stays.

    Args:
        seen: `Observations` of n samples.
        shares: Array (E + 1,) of shares that sum to 1, `final` last.

    Returns:
        Float array (E,); `inf` where nobody leaves, `-inf` where everybody
        does.

    Raises:
        ValueError: If there are not E + 1 shares that sum to 1.

    Example:

    ```python
    seen = ee.calibration.observe(model, x_calibration)
    thresholds = ee.calibration.thresholds_for_shares(seen, [0.5, 0.3, 0.2])
    model.policy.threshold = thresholds
    ```
    """
    n, early = seen.scores.shape
    # n a_i is often a whole number that rounding has left just below.
    counts = np.floor(n * _check_shares(shares, early + 1) + 1e-9).astype(int)
    thresholds = np.empty(early)
    inside = np.arange(n)
    for k in range(early):
        scores = seen.scores[inside, k]
        thresholds[k] = _threshold_for(scores, counts[k])
        inside = inside[~(scores > np.float32(thresholds[k]))]
    return thresholds


def calibrate_budget(model, x, *, budget=None, shares=None):
    """Sets each early exit's threshold so that a budget is spent.

    With `budget`, shares are geometric (`exit_shares_for`) and as much of the
    budget is spent as equal scores and whole samples allow, never more on
    these samples. With `shares`, as many leave at each exit.

    Both follow from scores alone and need no labels. The cost of new samples
    is estimated, not guaranteed, and so is their accuracy: see `calibrate` for
    thresholds that keep a risk, and its `max_cost`.

    Args:
        model: An `EarlyExitModel`. Its policy gets E thresholds.
        x: Samples that were not trained on, as in `calibration.observe`, or
            `Observations` of this model made with its present policy and
            weights.
        budget: Mean relative cost, from that of `exit_0` to that of `final`.
        shares: Array (E + 1,) of shares that sum to 1, in place of a budget.

    Returns:
        A `BudgetReport`.

    Raises:
        TypeError: If `model` has no exits.
        ValueError: If the budget or the shares cannot be met, or if more than
            half of the samples were trained on. The policy is then unchanged.

    Example:

    ```python
    print(ee.calibration.calibrate_budget(model, x_calibration, budget=0.4))
    answers = model.predict(x_test)
    ```

    Reference:
        Huang et al., Multi-Scale Dense Networks for Resource Efficient Image
        Classification, arXiv 1703.09844.
    """
    if (budget is None) == (shares is None):
        raise ValueError(
            "Expected either `budget` or `shares`. Received: "
            f"budget={budget!r} and shares={shares!r}."
        )
    seen = _samples.observed(model, x)
    if shares is None:
        shares = exit_shares_for(budget, seen.relative_costs)
        thresholds = _within(seen, float(budget))
    else:
        thresholds = thresholds_for_shares(seen, shares)
    _samples.refuse_trained(model, seen)
    report = BudgetReport(
        threshold=tuple(thresholds.tolist()),
        expected_relative_cost=seen.mean_cost(thresholds),
        exit_shares=seen.exit_shares(thresholds),
        asked_shares=np.asarray(shares, "float64"),
        n=len(seen),
        budget=None if budget is None else float(budget),
    )
    model.policy.threshold = report.threshold
    return report


def threshold_sequence(seen, num=50):
    """Vectors of thresholds from nobody leaves to everybody leaves.

    Row j belongs to the j-th of `num` budgets between the costs of `final`
    and of `exit_0`: the thresholds of its geometric shares, lowered to those
    of the row before where they are above. No threshold of a row is above
    that of an earlier row, so cost falls along the rows, and risk grows where
    deeper exits are better.

    Only scores are looked at, never losses. Take other samples than those to
    be calibrated with, such as a part of them that is set apart (at random):
    then the sequence is fixed beforehand, as the proofs behind `calibrate`
    want it.

    Args:
        seen: `Observations`.
        num: Number of rows, at least 2.

    Returns:
        Float array (num, E), for `calibrate(..., thresholds=)`.

    Raises:
        ValueError: If `num` is below 2.

    Example:

    ```python
    seen = ee.calibration.observe(model, x_calibration, y_calibration)
    sequence = ee.calibration.threshold_sequence(seen.take(slice(1000)))
    ee.calibrate(model, seen.take(slice(1000, None)), thresholds=sequence)
    ```
    """
    num = _checks.count("num", num, "50 is a good number.")
    if num < 2:
        raise ValueError(
            f"`num` must be at least 2, for the two ends. Received num={num}."
        )
    costs = seen.relative_costs
    rows = [
        thresholds_for_shares(seen, exit_shares_for(budget, costs))
        for budget in np.linspace(costs[-1], costs[0], num)
    ]
    return np.minimum.accumulate(rows, axis=0)


def _geometric(log_ratio, num_exits):
    """Shares proportional to p^i, for ln p."""
    powers = log_ratio * np.arange(num_exits)
    weights = np.exp(powers - powers.max())
    return weights / weights.sum()


def _within(seen, budget):
    """Thresholds of the geometric shares that spend most of a budget."""
    num_exits = len(seen.relative_costs)
    # Everybody at the first exit: affordable, since the budget is checked.
    low, high = -_LARGEST_LOG, _LARGEST_LOG
    best = np.array([-np.inf] * (num_exits - 1))
    for _ in range(40):
        middle = (low + high) / 2
        found = thresholds_for_shares(seen, _geometric(middle, num_exits))
        # The mean itself rounds: a budget may be met to the last digit.
        if seen.mean_cost(found) <= budget * (1 + 1e-12):
            low, best = middle, found
        else:
            high = middle
    return best


def _threshold_for(scores, count):
    """By which the `count` largest scores leave, or fewer if some are equal."""
    if count >= len(scores):
        return -np.inf
    if count == 0:
        return np.inf
    stays = np.partition(scores, len(scores) - count - 1)[-count - 1]
    leaving = scores[scores > stays]
    if not len(leaving):
        return np.inf
    leaves = leaving.min()
    middle = np.float32(stays + (leaves - stays) / 2)
    # Between neighbouring numbers there is none.
    return float(middle if middle < leaves else stays)


def _check_costs(relative_costs):
    costs = _checks.numeric("relative_costs", relative_costs).astype("float64")
    rising = costs.ndim == 1 and len(costs) > 1 and np.all(np.diff(costs) > 0)
    if not rising or not np.isfinite(costs).all():
        raise ValueError(
            "`relative_costs` must be an array (E + 1,) of finite costs that "
            "increase from exit to exit. Received "
            f"relative_costs={_checks.describe(relative_costs)}. Pass "
            "`model.relative_costs`."
        )
    return costs


def _check_budget(budget, costs):
    budget = _checks.real("budget", budget, "It is a mean relative cost.")
    if not costs[0] <= budget <= costs[-1]:
        raise ValueError(
            f"`budget` must lie between the cost of `exit_0`, {costs[0]:.4g}, "
            f"and that of `final`, {costs[-1]:.4g}: nobody leaves before the "
            f"one or behind the other. Received budget={budget:g}. Exits "
            "further in front allow smaller budgets."
        )
    return budget


def _check_shares(shares, num_exits):
    shares = _checks.numeric("shares", shares).astype("float64")
    fits = shares.shape == (num_exits,) and np.all(shares >= 0)
    if not fits or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(
            f"`shares` must be {num_exits} shares of at least 0, one for each "
            "exit and `final` last, that sum to 1. Received "
            f"shares={_checks.describe(shares)}."
        )
    return shares
