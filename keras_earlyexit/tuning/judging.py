"""What a trained trial is worth: thresholds from one split, figures of another.

Why two splits: thresholds that are chosen and judged on the same samples look
better than they are, and the more trials there are, the more so.
"""

import dataclasses

import numpy as np

from keras_earlyexit.calibration.budget import (
    calibrate_budget,
    threshold_sequence,
)

_NUM_POINTS = 25


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What a trial is worth.

    Args:
        metric: Accuracy of the routed answers in [0, 1], or the mean absolute
            error, on the validation split with `thresholds`.
        mean_cost: Their mean relative cost there.
        thresholds: One for each early exit, chosen on the calibration split.
        final_metric: The same figure of `final` alone.
        curve: Pairs (mean cost, metric) on the validation split, of many
            thresholds chosen on the calibration split; cheapest first.
        score: What a search makes as large as it can.
    """

    metric: float
    mean_cost: float
    thresholds: tuple
    final_metric: float
    curve: tuple
    score: float


def judge(model, calibration, validation, budget=None, tolerance=0.01):
    """Chooses a model's thresholds and says what they are worth.

    With a budget the thresholds are those of `calibrate_budget`, and the score
    is the best metric of the curve for that budget: what thresholds spend on
    other samples than theirs is a little more or less, and who happens to
    spend more must not win for it. Without one they are the cheapest whose
    metric on the calibration split is at most `tolerance` worse than the
    best, and the score is the metric that is to be had for a cost between 0
    and 1, on average over the costs: the area below the curve.

    Args:
        model: An `EarlyExitModel`. Its thresholds are set.
        calibration: `Observations` to choose from, with labels.
        validation: `Observations` of other samples, with labels.
        budget: Mean relative cost, or `None`.
        tolerance: How much worse the metric may be, without a budget.

    Returns:
        A `Judgement`.

    Raises:
        ValueError: If the budget is below the cost of the first exit, or if
            the model was trained on the samples.
    """
    rows = np.unique(threshold_sequence(calibration, _NUM_POINTS), axis=0)
    if budget is None:
        values = [worth(calibration, row) for row in rows]
        good = np.flatnonzero(np.max(values) - values <= tolerance)
        costs = [calibration.mean_cost(rows[i]) for i in good]
        thresholds = rows[good[int(np.argmin(costs))]]
        model.policy.threshold = tuple(thresholds.tolist())
    else:
        most = float(calibration.relative_costs[-1])
        report = calibrate_budget(model, calibration, budget=min(budget, most))
        thresholds = np.asarray(report.threshold)
    curve = front_of(validation, rows)
    sign = sign_of(validation)
    value = worth(validation, thresholds)
    return Judgement(
        metric=sign * value,
        mean_cost=validation.mean_cost(thresholds),
        thresholds=tuple(thresholds.tolist()),
        final_metric=float(validation.exit_metrics()[-1]),
        curve=tuple((cost, sign * found) for cost, found in curve),
        score=_area(curve) if budget is None else _bought(curve, budget),
    )


def sign_of(seen):
    """-1 for an error, of which less is better, else 1."""
    return 1.0 if seen.metric_name == "accuracy" else -1.0


def worth(seen, thresholds):
    """The metric of routed answers, negated if less of it is better."""
    return sign_of(seen) * seen.metric(thresholds)


def front_of(seen, rows=None):
    """What no other thresholds beat: pairs (mean cost, worth).

    Args:
        seen: `Observations` with labels.
        rows: Array (n, E) of thresholds, or `None` for some of its own.

    Returns:
        List of pairs; both rise.
    """
    from keras_earlyexit.tuning.front import pareto_front

    if rows is None:
        rows = threshold_sequence(seen, _NUM_POINTS)
    costs = [seen.mean_cost(row) for row in rows]
    values = [worth(seen, row) for row in rows]
    return [(costs[i], values[i]) for i in pareto_front(costs, values)]


def affordable(points, budget):
    """The best worth at a cost, of pairs that rise; `None` below them all."""
    values = [value for cost, value in points if cost <= budget]
    return max(values, default=None)


def _bought(curve, budget):
    found = affordable(curve, budget)
    return curve[0][1] if found is None else found


def _area(curve):
    """The mean, over costs up to 1, of the best worth for that cost.

    Below the cheapest point it is that of an answer nobody has computed,
    which is 0; an error counts as at that point, for lack of a worst one.
    """
    costs = [min(cost, 1.0) for cost, _ in curve] + [1.0]
    values = [value for _, value in curve]
    below = min(values[0], 0.0)
    steps = np.diff([0.0, *costs])
    return float(np.dot(steps, [below, *values]))
