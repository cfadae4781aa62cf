"""Gives a model the threshold that saves most work at a risk you allow.

Why samples are taken in a random order: the betting bound reads them one by
one and holds for independent samples only. Data sorted by class would make it
too low, and one fixed permutation mends that.
"""

import dataclasses
import typing
import warnings

import numpy as np

from keras_earlyexit.calibration import _checks, _exit_losses, bounds
from keras_earlyexit.calibration._reading import yields_batches
from keras_earlyexit.calibration.observations import Observations, observe
from keras_earlyexit.calibration.risk_control import control_risk

RISKS = ("consistency", "performance_gap")
_MOST_CANDIDATES = 200
_MOST_SAMPLES = 2**22


class Walk(typing.NamedTuple):
    """What was measured at each candidate threshold, falling from the largest.

    Args:
        thresholds: Array (L,).
        risks: Array (L,), mean loss on the calibration set.
        bounds: Array (L,), what the method says the risk is at most.
        relative_costs: Array (L,), mean relative cost.
    """

    thresholds: np.ndarray
    risks: np.ndarray
    bounds: np.ndarray
    relative_costs: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class RiskReport:
    """What `calibrate` found; `print` it, or see `plot`.

    Args:
        threshold: The threshold that was set; `inf`: nobody leaves early.
        risk_bound: What the risk is at most, by the method, in units of the
            loss; 0 if nobody leaves early.
        empirical_risk: The mean loss on the calibration set.
        expected_relative_cost: Mean relative cost on the calibration set; the
            model without exits is 1.
        exit_shares: Array (E + 1,), share of the samples that leave at each
            exit.
        n: Number of calibration samples.
        epsilon: The risk that was allowed.
        delta: The chance that the risk is above `epsilon` all the same.
        method: The rule, as in `control_risk`.
        risk: `consistency` or `performance_gap`.
        loss: Name of the loss.
        message: In a sentence, what is promised or why nothing is.
        walk: A `Walk`, the candidates that the threshold was chosen from.
    """

    threshold: float
    risk_bound: float
    empirical_risk: float
    expected_relative_cost: float
    exit_shares: np.ndarray
    n: int
    epsilon: float
    delta: float
    method: str
    risk: str
    loss: str
    message: str
    walk: Walk = dataclasses.field(repr=False)

    def __str__(self):
        names = [f"exit_{k}" for k in range(len(self.exit_shares) - 1)]
        shares = ", ".join(
            f"{name} {share:.1%}"
            for name, share in zip(
                [*names, "final"], self.exit_shares, strict=True
            )
        )
        rows = {
            "risk": f"{self.risk}, loss {self.loss}, method {self.method}",
            "threshold": f"{self.threshold:.6g}",
            "empirical risk": f"{self.empirical_risk:.4f} on {self.n} samples",
            "risk bound": f"{self.risk_bound:.4f} (allowed {self.epsilon:g})",
            "relative cost": f"{self.expected_relative_cost:.1%} of the plain "
            "model's multiply-adds",
            "exits taken": shares,
        }
        lines = [f"  {name:<16}{text}" for name, text in rows.items()]
        return "\n".join(["RiskReport", *lines, f"  {self.message}"])

    def plot(self, path=None):
        """Risk against relative cost, with the level and what was chosen.

        Args:
            path: Where to save the picture (`.png`, `.svg`, `.pdf`), or
                `None`.

        Returns:
            A `matplotlib.figure.Figure`.
        """
        from keras_earlyexit.plots import risk_curve

        return risk_curve(self, path=path)


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
):
    """Sets the smallest exit threshold that keeps a risk within `epsilon`.

    With o_t a routed answer at threshold t, o_E the whole model's and l the
    loss, the risk is

    - `consistency`: E[l(o_t, c_E) - l(o_E, c_E)], where c_E is the answer of
      the whole model (its class). No labels; with the zero-one loss this is
      P(routed answer differs from the whole model's).
    - `performance_gap`: E[l(o_t, y) - l(o_E, y)], what early exits cost
      against the labels y.

    `control_risk` walks from the largest threshold down and stops before the
    first whose risk is not under control, or whose mean loss is not below
    `epsilon` by itself; one threshold serves all exits. Use samples that were
    used neither for training nor for anything else, and choose temperatures
    before. The samples may be sorted.

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
        delta: The chance that the risk is above it all the same, in (0, 1).
        method: `"ucb"`, `"crc"`, `"ltt"`, `"ucb_hb"` or `"empirical"`, as in
            `control_risk`.
        thresholds: Candidates, in units of the score; `None` takes the
            distinct scores, at most 200 of them, and `inf` (never).

    Returns:
        A `RiskReport`.

    Raises:
        TypeError: If `model` has no exits.
        ValueError: If an argument is out of range, labels are missing, or the
            model has no classes for the loss. The policy is then unchanged.

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
    # Looks at epsilon, delta and method before the network runs.
    control_risk(np.zeros((1, 1)), [0.0], epsilon, delta, method, bound)
    _check_choice("risk", risk, RISKS)
    if not callable(loss):
        _check_choice("loss", loss, _exit_losses.NAMES, " or a callable")
    seen = _observations(model, x, y, risk, loss)
    losses = _exit_losses.measure(seen, risk, loss)
    thresholds = _candidates(seen.scores, thresholds)
    taken = seen.exit_index_grid(thresholds)
    losses = np.take_along_axis(losses, taken, axis=1)
    losses = np.random.default_rng(0).permutation(losses, axis=0)
    # The betting bound can fall below the mean loss itself: ask for both.
    threshold = max(
        control_risk(losses, thresholds, epsilon, delta, rule, bound)
        for rule in (method, "empirical")
    )
    risks = losses.mean(axis=0, dtype="float64")
    walk = Walk(
        thresholds=thresholds,
        risks=risks,
        bounds=np.maximum(_risk_bounds(losses, delta, method, bound), risks),
        relative_costs=seen.relative_costs[taken].mean(axis=0),
    )
    never = threshold == np.inf
    chosen = None if never else int(np.argmax(thresholds == threshold))
    if never:
        message = _apology(walk, len(seen), epsilon, delta, method, bound)
    else:
        message = _promise(epsilon, delta, method)
    report = RiskReport(
        threshold=threshold,
        risk_bound=0.0 if never else float(walk.bounds[chosen]),
        empirical_risk=0.0 if never else float(walk.risks[chosen]),
        expected_relative_cost=seen.mean_cost(threshold),
        exit_shares=seen.exit_shares(threshold),
        n=len(seen),
        epsilon=float(epsilon),
        delta=float(delta),
        method=method,
        risk=risk,
        loss=loss if isinstance(loss, str) else _exit_losses.name_of(loss),
        message=message,
        walk=walk,
    )
    model.policy.threshold = threshold
    if never:
        warnings.warn(message, stacklevel=2)
    return report


def _observations(model, x, y, risk, loss):
    """The calibration set's observations, of which nothing is missing."""
    needs_labels = risk == "performance_gap"
    if isinstance(x, Observations):
        _check_task(x.head, loss)
        _check_same(x, model)
    else:
        _check_task(getattr(model, "head", None), loss)
        if needs_labels and y is None and not yields_batches(x):
            raise _labels_missing()
        y = y if needs_labels else None
        x = observe(model, x, y, with_labels=needs_labels)
    if needs_labels and x.labels is None:
        raise _labels_missing()
    return x


def _check_same(seen, model):
    policy = getattr(model, "policy", None)
    if policy is None:
        raise TypeError(
            "Expected a model with exits. Received: "
            f"{model!r} (of type {type(model).__name__})."
        )
    if seen.policy_name != policy.name or not np.array_equal(
        seen.relative_costs, model.relative_costs
    ):
        raise ValueError(
            "Expected observations of this model with its present policy "
            f"{policy.name!r}. Received: {seen!r}. Observe it again."
        )


def _labels_missing():
    return ValueError(
        "Expected labels for risk='performance_gap'. Received: y=None. Pass "
        "`calibrate(model, x, y)` or a dataset of (x, y), or take "
        "risk='consistency', which compares with the whole model's answers."
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


def _candidates(scores, thresholds):
    """Thresholds to walk over, falling."""
    if thresholds is not None:
        thresholds = np.unique(_checks.numeric("thresholds", thresholds))
        if not thresholds.size or np.isnan(thresholds).any():
            raise ValueError(
                "Expected at least one threshold, and no NaN. Received: "
                f"thresholds={_checks.describe(thresholds)}."
            )
        return thresholds[::-1].astype("float64")
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


def _promise(epsilon, delta, method):
    if method == "empirical":
        return (
            f"The risk on these samples is below {epsilon:g}; nothing is "
            "promised for others."
        )
    if method == "crc":
        return (
            f"On average over calibration sets, the risk is at most {epsilon:g}"
            " for new samples like these."
        )
    return (
        f"With probability {1 - delta:g} over calibration sets, the risk is "
        f"at most {epsilon:g} for new samples like these."
    )


def _apology(walk, n, epsilon, delta, method, bound):
    needed = _samples_needed(epsilon, delta, method, bound)
    if n < needed:
        more = "more" if needed > _MOST_SAMPLES else f"at least {needed}"
        return (
            f"Nobody leaves early: {n} calibration samples are too few to "
            f"vouch for a risk of {epsilon:g} (method {method!r}, delta "
            f"{delta:g}), even if no answer changes. Pass {more}, or allow a "
            "larger `epsilon`."
        )
    finite = walk.thresholds < np.inf
    seen = "there is only one distinct score"
    if finite.any():
        seen = (
            f"at the largest one, {walk.thresholds[finite][0]:.6g}, it is "
            f"{walk.risks[finite][0]:.4f} on these samples and up to "
            f"{walk.bounds[finite][0]:.4f}"
        )
    return (
        f"Nobody leaves early: no threshold keeps the risk within {epsilon:g} "
        f"by method {method!r}; {seen}. Allow a larger `epsilon`, train the "
        "exits for longer, or choose another policy."
    )


def _samples_needed(epsilon, delta, method, bound):
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
