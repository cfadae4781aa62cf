"""The figures of a report: what routing costs and gains, levels, temperatures.

What has no meaning for a model, such as risk levels for one that answers with
values, is a reason in a sentence instead of a figure.
"""

import typing
import warnings

import numpy as np

from keras_earlyexit import policies
from keras_earlyexit.calibration import calibrate
from keras_earlyexit.calibration.metrics import reliability_data, top_label
from keras_earlyexit.calibration.temperature import (
    apply_temperature,
    fit_temperature,
)

_COMPARED = ("max_probability", "entropy", "margin", "patience")
_FEWEST, _BINS = 20, 10
_TINY = 1e-12


class Temperatures(typing.NamedTuple):
    """What temperature scaling does to each exit.

    Args:
        values: Dict by exit name of the temperature.
        panels: Dict by exit name of two `ReliabilityData`, before and after.
        source: On which samples they were fitted, in words.
    """

    values: dict
    panels: dict
    source: str


def headline(seen, taken, profile=None):
    """The few figures that come first.

    Args:
        seen: `Observations` with labels.
        taken: Integer array (n,), the exit that each sample leaves at.
        profile: A `DeviceProfile`, or `None`.

    Returns:
        List of triples (name, figure, remark), all text.
    """
    n, last = len(seen), len(seen.exit_names) - 1
    own = seen.sample_metrics[np.arange(n), taken]
    cost = float(seen.relative_costs[taken].mean())
    early = float(np.mean(taken < last))
    whole = float(seen.exit_metrics()[-1])
    found = []
    if seen.head.task == "regression":
        remark = f"final alone {whole:.4g}"
        found.append(("mean absolute error", f"{own.mean():.4g}", remark))
    else:
        remark = f"{_interval(own)}final alone {whole:.2%}"
        found.append(("accuracy", f"{own.mean():.2%}", remark))
    found.append(
        ("mean cost", f"{cost:.1%}", "of the plain model's, which is 100%")
    )
    found.append(("leave early", f"{early:.1%}", f"of {n:,} samples"))
    if seen.head.task != "regression":
        same = _same_as_whole(seen, taken)
        found.append(("answer as final does", f"{same:.2%}", "of all samples"))
    if profile is not None and profile.exits and profile.plain is not None:
        found.append(_time(profile, taken))
    return found


def of_exits(seen, taken, temperatures=None):
    """A row of figures for each exit.

    Args:
        seen: `Observations` with labels.
        taken: Integer array (n,), the exit that each sample leaves at.
        temperatures: `Temperatures`, or `None`.

    Returns:
        A list of column names, and a list of rows, all text.
    """
    is_error = seen.head.task == "regression"
    figure = "error" if is_error else "accuracy"
    form = ".4g" if is_error else ".1%"
    columns = ["exit", "cost", "leave here", f"{figure} of these"]
    columns.append(f"{figure}, if all left here")
    if temperatures:
        columns += ["temperature", "ECE before", "ECE after"]
    rows = []
    for k, name in enumerate(seen.exit_names):
        here = taken == k
        quality = seen.sample_metrics[:, k]
        row = [name, f"{seen.relative_costs[k]:.3f}", f"{here.mean():.1%}"]
        row.append(f"{quality[here].mean():{form}}" if here.any() else "-")
        row.append(f"{quality.mean():{form}}")
        if temperatures:
            row.append(f"{temperatures.values[name]:.3f}")
            row += [
                f"{data.expected_calibration_error:.1%}"
                for data in temperatures.panels[name]
            ]
        rows.append(row)
    return columns, rows


def by_policy(seen, objective=None):
    """The observations, scored by every policy that fits the model.

    Args:
        seen: `Observations`, scored by the model's own policy.
        objective: The model's objective, which says whether the confidence
            branches are trained; `None` if that is not known.

    Returns:
        Dict by policy name of `Observations`, the model's own first, and a
        list of reasons for those that are left out.
    """
    found, reasons = {seen.policy_name: seen}, []
    names = list(_COMPARED)
    if objective is not None and objective.trains_confidence:
        names.append(objective.policy)
    for name in names:
        if name in found:
            continue
        try:
            found[name] = seen.scored_by(policies.get(name))
        except ValueError:
            reasons.append(f"{name} does not fit this model")
    return found, reasons


def risk_levels(model, seen, levels):
    """Thresholds for some levels of risk; the model keeps its own.

    Args:
        model: The `EarlyExitModel`.
        seen: `Observations` of the calibration data.
        levels: The risks that are allowed, in (0, 1).

    Returns:
        Dict by level of a `RiskReport`, and a list of sentences on what went
        wrong.
    """
    if seen.head.task == "regression":
        return {}, [
            "Risk levels are left out: the model answers with values, which "
            "are neither right nor wrong."
        ]
    risk = "consistency" if seen.labels is None else "performance_gap"
    kept = model.policy.threshold
    found = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            for level in levels:
                found[level] = calibrate(model, seen, risk=risk, epsilon=level)
        finally:
            model.policy.threshold = kept
    return found, list(dict.fromkeys(str(item.message) for item in caught))


def temperatures(seen, calibration=None):
    """Temperatures of all exits, and what they do to the confidences.

    Args:
        seen: `Observations` with labels, to show.
        calibration: `Observations` with labels to fit them on; `None` takes
            half of what is shown, and shows the other half.

    Returns:
        `Temperatures`, or a sentence that says why there are none.
    """
    head = seen.head
    if head.task != "classification" or head.positions:
        return (
            "Reliability diagrams are left out: they are for models that "
            "answer with one class."
        )
    source = "on the calibration data"
    if calibration is None or calibration.labels is None:
        calibration, seen = (
            seen.take(slice(0, None, 2)),
            seen.take(slice(1, None, 2)),
        )
        source = "on every other sample, and shown on the rest"
    if min(len(seen), len(calibration)) < _FEWEST:
        return (
            "Reliability diagrams are left out: there are fewer than "
            f"{_FEWEST} samples to fit temperatures on, or to show them."
        )
    values, panels = {}, {}
    for k, name in enumerate(seen.exit_names):
        fitted = _logits(head, calibration.predictions[k])
        value = fit_temperature(fitted, calibration.labels)
        shown = _logits(head, seen.predictions[k])
        values[name] = value
        panels[name] = tuple(
            reliability_data(
                *top_label(apply_temperature(shown, t), seen.labels), _BINS
            )
            for t in (1.0, value)
        )
    return Temperatures(values, panels, source)


def _logits(head, prediction):
    if head.from_logits:
        return prediction
    return np.log(np.maximum(prediction, _TINY))


def _interval(own):
    """The 95 % interval of a share of right answers, as text."""
    if not np.isin(own, (0, 1)).all():
        return ""
    from scipy import stats

    test = stats.binomtest(int(own.sum()), len(own))
    low, high = test.proportion_ci(0.95, method="wilson")
    return f"95% interval {low:.1%} to {high:.1%}, "


def _same_as_whole(seen, taken):
    answers = np.stack([seen.answers(k) for k in range(len(seen.exit_names))])
    routed = answers[taken, np.arange(len(seen))]
    return float(np.mean(routed == answers[-1]))


def _time(profile, taken):
    size = profile.batch_sizes[0]
    shares = np.bincount(taken, minlength=len(profile.exits)) / len(taken)
    exits = [profile.exit_seconds(k, size) for k in range(len(profile.exits))]
    mean = 1000 * float(shares @ exits) / size
    plain = 1000 * profile.at(profile.plain.seconds, size) / size
    what = "a lone sample" if size == 1 else f"a sample, batches of {size}"
    return (f"time for {what}", f"{mean:.3g} ms", f"plain model {plain:.3g} ms")
