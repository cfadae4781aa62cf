"""Gives a model the threshold that saves most work at a risk you allow.

Why samples are taken in a random order: the betting bound reads them one by
one and holds for independent samples only. Data sorted by class would make it
too low, and one fixed permutation mends that.
"""

import warnings

import numpy as np

from keras_earlyexit.calibration import (
    _checks,
    _exit_losses,
    _messages,
    _samples,
    bounds,
)
from keras_earlyexit.calibration.reports import RiskReport, Walk
from keras_earlyexit.calibration.risk_control import Risk, control_risks

RISKS = ("consistency", "performance_gap")
_MOST_CANDIDATES = 200


def calibrate(
    model,
    x,
    y=None,
    *,
    risk="consistency",
    loss="zero_one",
    epsilon=0.02,
    delta=0.1,
    method="ucb",
    thresholds=None,
    max_cost=None,
):
    """Sets the smallest exit threshold that keeps a risk within `epsilon`.

    With o_t a routed answer at threshold t, o_E the whole model's and l the
    loss, the risk is

    - `consistency`: E[l(o_t, c_E) - l(o_E, c_E)], where c_E is the answer of
      the whole model (its class). No labels; with the zero-one loss this is
      P(routed answer differs from the whole model's).
    - `performance_gap`: E[l(o_t, y) - l(o_E, y)], what early exits cost
      against the labels y.

    `control_risks` walks from the largest threshold down and stops before the
    first whose risk is not under control, or whose mean loss is not below
    `epsilon` by itself; one threshold serves all exits unless `thresholds`
    has one for each. Use samples that were used neither for training nor for
    anything else, and choose temperatures before. The samples may be sorted.

    With `max_cost` the mean relative cost is kept too, by a second walk from
    the cheap end, each walk at `delta` / 2: with probability 1 - `delta` both
    promises hold. Without it the cost is an estimate.

    A warning says so if no threshold can be vouched for; then nobody leaves
    early, and nothing is saved. Use `thresholds` for a grid that was fixed
    beforehand, as the proofs have it: the distinct scores depend on the
    samples, though not on their losses.

    Args:
        model: An `EarlyExitModel`. Its policy gets the threshold.
        x: As in `calibration.observe`, or `Observations` of this model made
            with its present policy and weights.
        y: Labels, for `performance_gap` only; `None` if `x` brings them.
        risk: `"consistency"` or `"performance_gap"`.
        loss: `"zero_one"`; `"brier"`, sum_k (p_k - 1[k = c])^2 in [0, 2]; or a
            callable `loss(y_true, y_pred)` that returns (n,) losses in [0, 1].
            It gets numpy arrays: classes (n, ...) and probabilities (n, ...,
            classes), labels and probabilities (n, ..., labels), or values.
            Several positions or labels of a sample are averaged.
        epsilon: The risk that is allowed, in units of the loss, in (0, 1).
        delta: The chance that it is above that all the same, in (0, 1).
        method: `"ucb"`, `"crc"`, `"ltt"`, `"ucb_hb"` or `"empirical"`, as in
            `control_risk`. Not `"crc"` with `max_cost`.
        thresholds: Candidates, in units of the score: an array (L,), or
            (L, E) with one for each early exit in every row, walked as they
            come, the most careful row first (see `threshold_sequence`).
            `None` takes the distinct scores, at most 200 of them, and `inf`
            (never).
        max_cost: The mean relative cost that is allowed, above that of
            `exit_0`; `None`: any.

    Returns:
        A `RiskReport`.

    Raises:
        TypeError: If `model` has no exits.
        ValueError: If an argument is out of range, labels are missing, the
            model has no classes for the loss, or more than half of the
            samples were trained on. The policy is then unchanged.

    Example:

    ```python
    report = ee.calibrate(model, x_calibration, epsilon=0.02)
    print(report)
    answers = model.predict(x_test)
    ```

    Reference:
        Jazbec et al., Fast yet Safe: Early-Exiting with Risk Control,
        arXiv 2405.20915.
    """
    bound = 2.0 if loss == "brier" else 1.0
    max_cost = _check_max_cost(max_cost, model)
    # Looks at epsilon, delta and method before the network runs.
    tried = [Risk(np.zeros((1, 1)), epsilon, bound)]
    if max_cost is not None:
        tried.append(Risk(np.zeros((1, 1)), 0.5, grows=True))
    control_risks(tried, [0.0], delta, method)
    _check_choice("risk", risk, RISKS)
    if not callable(loss):
        _check_choice("loss", loss, _exit_losses.NAMES, " or a callable")
    seen = _samples.observed(
        model,
        x,
        y,
        needs_labels=risk == "performance_gap",
        check=lambda head: _check_task(head, loss),
    )
    thresholds = _candidates(seen.scores, thresholds)
    taken = seen.exit_index_grid(thresholds)
    order = np.random.default_rng(0).permutation(len(seen))
    losses = _exit_losses.measure(seen, risk, loss)
    risks = [
        Risk(
            np.take_along_axis(losses, taken, axis=1)[order],
            epsilon,
            bound,
            name=risk,
        )
    ]
    if max_cost is not None:
        risks.append(_cost_risk(seen.relative_costs, taken[order], max_cost))
    found = control_risks(risks, thresholds, delta, method)
    _samples.refuse_trained(model, seen)
    walk = _walk(seen, thresholds, taken, risks, delta / len(risks), method)
    never = bool(np.all(np.equal(found.threshold, np.inf)))
    if never:
        message = _messages.apology(
            walk, found, seen, risks, delta / len(risks), method, max_cost
        )
    else:
        message = _messages.promise(epsilon, delta, method, max_cost)
    chosen = found.index
    report = RiskReport(
        threshold=found.threshold,
        risk_bound=0.0 if never else float(walk.bounds[chosen]),
        empirical_risk=0.0 if never else float(walk.risks[chosen]),
        expected_relative_cost=seen.mean_cost(found.threshold),
        exit_shares=seen.exit_shares(found.threshold),
        n=len(seen),
        epsilon=float(epsilon),
        delta=float(delta),
        method=method,
        risk=risk,
        loss=loss if isinstance(loss, str) else _exit_losses.name_of(loss),
        message=message,
        walk=walk,
        max_cost=max_cost,
        cost_bound=(
            None
            if never or max_cost is None
            else float(walk.cost_bounds[chosen])
        ),
    )
    model.policy.threshold = found.threshold
    if never:
        warnings.warn(message, stacklevel=2)
    return report


def _cost_risk(relative_costs, taken, max_cost):
    """Cost as a loss in [0, 1]: 0 at the cheapest exit, 1 at the dearest."""
    low, high = relative_costs.min(), relative_costs.max()
    losses = (relative_costs[taken] - low) / (high - low)
    # Above the cost of the dearest exit every threshold is affordable.
    level = min((max_cost - low) / (high - low), 1 - 1e-9)
    return Risk(losses, level, grows=True, name="cost")


def _walk(seen, thresholds, taken, risks, delta, method):
    measured = [
        np.maximum(
            _risk_bounds(risk.losses, delta, method, risk.bound),
            risk.losses.mean(axis=0, dtype="float64"),
        )
        for risk in risks
    ]
    cost_bounds = None
    if len(risks) > 1:
        low, high = seen.relative_costs.min(), seen.relative_costs.max()
        cost_bounds = low + (high - low) * measured[1]
    return Walk(
        thresholds=thresholds,
        risks=risks[0].losses.mean(axis=0, dtype="float64"),
        bounds=measured[0],
        relative_costs=seen.relative_costs[taken].mean(axis=0),
        cost_bounds=cost_bounds,
    )


def _check_task(head, loss):
    values = getattr(head, "task", None) == "regression"
    if values and isinstance(loss, str):
        raise ValueError(
            f"Expected a classifier for loss={loss!r}. Received: a model that "
            f"answers with {head.units} values. Pass a callable `loss(y_true, "
            "y_pred)` with losses in [0, 1], such as a clipped error."
        )


def _check_choice(name, value, choices, more=""):
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"Expected `{name}` to be {' or '.join(map(repr, choices))}{more}. "
            f"Received: {name}={_checks.describe(value)}."
        )


def _check_max_cost(max_cost, model):
    costs = getattr(model, "relative_costs", None)
    if max_cost is None or costs is None:
        return None
    max_cost = _checks.real("max_cost", max_cost, "It is a mean relative cost.")
    if max_cost <= costs.min():
        raise ValueError(
            f"`max_cost` must be above the cost of the cheapest exit, "
            f"{costs.min():.4g}, at which even all samples together could "
            f"leave. Received max_cost={max_cost:g}. Exits further in front "
            "allow smaller costs."
        )
    return max_cost


def _candidates(scores, thresholds):
    """Thresholds to walk over: falling, or rows as they come."""
    if thresholds is not None:
        thresholds = _checks.grid(thresholds, scores.shape[1])
        if thresholds.ndim == 1:
            thresholds = np.unique(thresholds)[::-1]
        return thresholds
    # At the largest score nobody leaves either: `inf` says it more safely.
    distinct = np.unique(scores)[:-1]
    if len(distinct) > _MOST_CANDIDATES:
        ranks = np.linspace(0, len(distinct) - 1, _MOST_CANDIDATES)
        distinct = distinct[np.round(ranks).astype(int)]
    return np.append(distinct, np.inf)[::-1].astype("float64")


def _risk_bounds(losses, delta, method, bound):
    """What a method says the risk is at most, per column: (L,)."""
    n = len(losses)
    total = losses.sum(axis=0, dtype="float64")
    if method == "empirical":
        return total / n
    if method == "crc":
        return (total + bound) / (n + 1)
    if method == "ucb":
        return bounds.wsr_upper_bound(losses, delta, bound)
    losses = np.clip(losses / bound, 0, 1)
    binary = method == "ltt" and bool(np.isin(losses, (0, 1)).all())
    return bound * bounds.hoeffding_bentkus_upper_bound(
        losses.mean(axis=0), n, delta, binary
    )
