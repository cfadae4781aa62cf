"""Writes the report: one file, which needs nothing else and asks for nothing.

The page is a Jinja2 template with autoescaping, since names of classes and
samples may hold anything. A content security policy in it forbids scripts and
requests, so that even a mistake here could not let one through.
"""

import pathlib

import numpy as np

from keras_earlyexit import json_values, plots
from keras_earlyexit.calibration import (
    Fingerprints,
    fingerprints_of,
    observe,
)
from keras_earlyexit.report import findings, origins, pictures
from keras_earlyexit.report.galleries import Galleries
from keras_earlyexit.report.samples import Samples, names_of

_LEVELS = (0.01, 0.02, 0.05)


def write_report(
    model,
    x,
    y,
    path,
    *,
    calibration=None,
    references=None,
    class_names=None,
    samples=None,
    levels=_LEVELS,
    profile=True,
    notes=None,
):
    """Writes what a model with exits does on a data set, as one HTML file.

    It holds the figures that matter, accuracy against cost for every policy,
    who leaves where, how far confidences can be trusted, the network, samples
    from easy to hard, mistakes that a deeper exit would have mended and those
    that it would have made, and the time of each stage. What has no meaning
    for a model is left out, and the report says so. The model is not changed.

    Args:
        model: An `EarlyExitModel` with the thresholds that it will have.
        x: The samples to report on, neither trained nor calibrated on: an
            array, or a list or dict of arrays for several inputs.
        y: Their labels, as in `ee.calibration.observe`.
        path: The `.html` file to write.
        calibration: `(x, y)` of other samples, to choose the thresholds of
            the risk levels and the temperatures on; without it there are no
            levels, and temperatures are fitted on half of `x`.
        references: Static models to compare with, as in
            `ee.plots.accuracy_cost_curve`.
        class_names: Names of the classes or labels, in order.
        samples: What is shown of the samples, in the order of `x`: pictures,
            strings, dicts, or a dict of columns. `None` shows `x` itself.
        levels: Risks to mark, each in (0, 1): what early exits may cost in
            accuracy.
        profile: A `DeviceProfile` of the model; `True` measures this machine,
            `False` leaves the time out.
        notes: Dict by name of what else is needed to make the report again,
            such as `{"seed": 0, "command": "...", "date": "..."}`.

    Returns:
        The `pathlib.Path` of the file.

    Raises:
        TypeError: If `model` has no exits, or `x` is no array.
        ValueError: If labels are missing, names or samples are not as many as
            they should be, or most of the calibration samples were trained
            on.

    Example:

    ```python
    ee.report.write_report(
        model, x_test, y_test, "report.html", calibration=(x_cal, y_cal)
    )
    ```
    """
    seen = _observe(model, x, y)
    names = names_of(seen.head, class_names)
    shown = _as_shown(x if samples is None else samples, len(seen))
    apart = None if calibration is None else _observe(model, *calibration)
    if profile is True:
        profile = _measure(model, x)
    found = _collect(model, seen, apart, references, names, shown, levels)
    found["profile"] = profile or None
    found["headline"] = findings.headline(seen, found["taken"], profile or None)
    if profile:
        figure = pictures.latency(profile)
        found["pictures"]["latency"] = pictures.as_svg(figure, "latency")
        found["times"] = _times(profile)
    found["warnings"] += _overlaps(model, x, calibration)
    found["origins"] = origins.facts(model, x, y, notes or {})
    found["title"] = model.name
    path = pathlib.Path(path)
    json_values.write(path, _render(found))
    return path


def _observe(model, x, y):
    if (
        y is None
        or not isinstance(x, (list, tuple, dict))
        and not hasattr(x, "__array__")
    ):
        raise TypeError(
            "Expected arrays of samples and of labels, to show some of them. "
            f"Received: x of type {type(x).__name__} and y of type "
            f"{type(y).__name__}. Collect a dataset into arrays first."
        )
    return observe(model, x, y, verbose=0)


def _as_shown(samples, count):
    if isinstance(samples, dict):
        columns = samples
    elif isinstance(samples, tuple) or (
        isinstance(samples, list) and np.ndim(samples[0]) > 0
    ):
        columns = {f"input {k}": array for k, array in enumerate(samples)}
    else:
        columns = {"samples": samples}
    for name, column in columns.items():
        if len(column) != count:
            raise ValueError(
                f"Expected {count} samples to show, as many as there are in "
                f"`x`. Received: {len(column)} in {name!r}."
            )
    return Samples(samples if len(columns) == 1 else columns)


def _collect(model, seen, apart, references, names, shown, levels):
    """All that comes from observations: figures, pictures, galleries."""
    threshold = model.policy.threshold
    taken = seen.exit_index(threshold)
    reports, trouble = {}, []
    if apart is not None:
        reports, trouble = findings.risk_levels(model, apart, levels)
    named, reasons = findings.by_policy(seen, model.objective)
    scaled = findings.temperatures(seen, apart)
    has_scaled = isinstance(scaled, findings.Temperatures)
    drawn = {
        "curve": pictures.narrow(
            plots.accuracy_cost_curve(
                named,
                references,
                {seen.policy_name: threshold},
                levels={f"risk {k:.3g}": found for k, found in reports.items()},
            ),
            longer=1.2,
        ),
        "exits": pictures.narrow(
            plots.exit_histogram(seen, thresholds=threshold, class_names=names)
        ),
        "network": plots.network(model, seen),
    }
    if has_scaled:
        drawn["reliability"] = pictures.reliability(scaled.panels)
    galleries = Galleries(seen, taken, shown, names)
    found = {
        "taken": taken,
        "n": len(seen),
        "exits": findings.of_exits(seen, taken, scaled if has_scaled else None),
        "policy": seen.policy_name,
        "thresholds": np.atleast_1d(threshold).tolist(),
        "left_out": reasons,
        "levels": [_level_row(seen, k, r) for k, r in reports.items()],
        "calibration_n": None if apart is None else len(apart),
        "warnings": trouble,
        "scaled": scaled if has_scaled else None,
        "no_scaled": None if has_scaled else scaled,
        "pictures": {k: pictures.as_svg(v, k) for k, v in drawn.items()},
        "by_exit": galleries.by_exit(),
        "fixable": None,
    }
    if seen.head.task != "regression":
        fixable, better = galleries.mistakes()
        found["fixable"] = len(fixable), galleries.cards(fixable)
        found["better"] = len(better), galleries.cards(better)
    return found


def _level_row(seen, level, report):
    """A risk level as promised, and as it turned out on the report's data."""
    threshold = report.threshold
    gap = float(seen.exit_metrics()[-1] - seen.metric(threshold))
    thresholds = ", ".join(f"{value:.4g}" for value in np.atleast_1d(threshold))
    return [
        f"{level:.3g}",
        thresholds,
        f"{report.risk_bound:.4f}",
        f"{gap:+.4f}",
        f"{seen.metric(threshold):.2%}",
        f"{seen.mean_cost(threshold):.1%}",
    ]


def _measure(model, x):
    from keras_earlyexit.profiling import profile

    def first(array):
        return array[:32]

    if isinstance(x, dict):
        some = {name: first(array) for name, array in x.items()}
    elif isinstance(x, (list, tuple)):
        some = [first(array) for array in x]
    else:
        some = first(x)
    return profile(model, batch_sizes=(1, 32), x=some)


def _times(profile):
    """Milliseconds a sample of each stage and exit: columns and rows."""
    sizes = profile.batch_sizes
    columns = ["exit"]
    columns += [f"its stage, batch {size}" for size in sizes]
    if profile.exits:
        columns += [f"to answer there, batch {size}" for size in sizes]
    rows = []
    for k, stage in enumerate(profile.stages):
        row = [stage.name]
        row += [
            f"{1000 * seconds / size:.3g}"
            for seconds, size in zip(stage.seconds, sizes, strict=True)
        ]
        if profile.exits:
            exits = profile.exits[k].seconds
            row += [
                f"{1000 * seconds / size:.3g}"
                for seconds, size in zip(exits, sizes, strict=True)
            ]
        rows.append(row)
    return columns, rows


def _overlaps(model, x, calibration):
    """Sentences on samples that should not be among those reported on."""
    from keras_earlyexit.inputs import as_inputs

    own = fingerprints_of(as_inputs(x, model.net.input))
    found = []
    record = getattr(model, "training_fingerprints", None)
    if record is not None and record.overlap_of(own):
        share = record.overlap_of(own)
        found.append(
            f"The model was trained on {share:.1%} of these samples: the "
            "figures are too good."
        )
    if calibration is not None:
        other = Fingerprints()
        other.add(as_inputs(calibration[0], model.net.input))
        if other.overlap_of(own):
            found.append(
                f"{other.overlap_of(own):.1%} of these samples are among "
                "those that thresholds were chosen on: the figures are too "
                "good."
            )
    return found


def _render(found):
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(found)
