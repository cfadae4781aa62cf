"""Pictures of what early exits save and what they cost.

matplotlib is imported by the functions, and its state of the process (the
current figure, the back end, the style) is neither used nor changed: every
function returns a `matplotlib.figure.Figure` of its own.
"""

import numpy as np

from keras_earlyexit.drawing import (
    DARK_TEXT,
    INK,
    LIGHT_TEXT,
    MUTED,
    SERIES,
    add_legend,
    depth_colors,
    finish,
    make_figure,
)
from keras_earlyexit.network_picture import network as network

_REFERENCE_MARKERS = "*PXDv^"
_LEVEL_MARKERS = "^v<>dp"
_MOST_ROWS = 20


def accuracy_cost_curve(
    observations, references=None, chosen=None, path=None, *, levels=None
):
    """Accuracy of the routed answers against their mean relative cost.

    Each curve runs over all thresholds, from everybody leaving at the first
    exit to nobody leaving early. Squares are the exits alone, if one of them
    answers every sample. Stars are references, a ring is a chosen threshold.
    For a regression model the mean absolute error takes accuracy's place.

    Args:
        observations: `Observations` with labels, or a dict of them by name,
            one curve each.
        references: Dict by name of a value, or of (relative cost, value):
            accuracy in [0, 1], or the error. `None` takes the plain model,
            which answers as `final` does at a relative cost of 1.
        chosen: A threshold (a number, or one per early exit), a `RiskReport`,
            or a dict of these by the names of `observations`.
        path: Where to save the picture (`.png`, `.svg`, `.pdf`), or `None`.
        levels: Dict by name, such as `"1 % risk"`, of further thresholds, or
            of `RiskReport`s, to mark on the first curve.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: If observations have no labels, or names do not match.

    Example:

    ```python
    seen = ee.calibration.observe(model, x_test, y_test)
    ee.plots.accuracy_cost_curve(seen, chosen=report, path="curve.png")
    ```
    """
    named = observations
    if not isinstance(observations, dict):
        by = observations.policy_name
        named = {f"routed by {by}" if by else "routed": observations}
    if chosen is not None and not isinstance(chosen, dict):
        chosen = dict.fromkeys(named, chosen)
    chosen = chosen or {}
    unknown = sorted(set(chosen) - set(named))
    if unknown or not named:
        raise ValueError(
            "Expected observations, and chosen thresholds by their names. "
            f"Received: observations {list(named)} and chosen {list(chosen)}."
        )
    first = next(iter(named.values()))
    scale = 1.0 if first.metric_name == "mean_absolute_error" else 100.0
    if references is None:
        references = {"plain model": first.exit_metrics()[-1]}
    figure, axes = make_figure(6.4, 4.8)
    exits_drawn = []
    for k, (name, seen) in enumerate(named.items()):
        color = SERIES[k % len(SERIES)]
        _, costs, values = seen.curve()
        axes.plot(100 * costs, scale * values, color=color, lw=2.2, label=name)
        own = color if len(named) == 1 else MUTED
        _draw_exits(axes, seen, scale, own, exits_drawn)
        if name in chosen:
            _draw_chosen(axes, seen, chosen[name], scale, color)
    for k, (name, place) in enumerate(references.items()):
        cost, value = (1.0, place) if np.ndim(place) == 0 else place
        marker = _REFERENCE_MARKERS[k % len(_REFERENCE_MARKERS)]
        _mark(axes, 100 * cost, scale * value, marker, "white", name, 14, INK)
    for k, (name, threshold) in enumerate((levels or {}).items()):
        threshold = _threshold_of(threshold)
        cost = 100 * first.mean_cost(threshold)
        value = scale * first.metric(threshold)
        label = f"{name}: {value:.3g}{_unit(scale)} at {cost:.3g} % cost"
        marker = _LEVEL_MARKERS[k % len(_LEVEL_MARKERS)]
        _mark(axes, cost, value, marker, INK, label, 8)
    axes.set_xlabel("Mean relative cost (% of the plain model)")
    axes.set_ylabel(
        "Accuracy (%)"
        if scale == 100
        else "Mean absolute error (units of the label)"
    )
    axes.margins(0.08)
    add_legend(figure, axes)
    return finish(figure, path)


def exit_histogram(
    answers,
    *,
    thresholds=None,
    labels=None,
    exit_names=None,
    class_names=None,
    path=None,
):
    """Share of the samples that leave at each exit, overall and by class.

    Args:
        answers: An `ExitResult`, or `Observations`.
        thresholds: For `Observations`: a number, one per early exit, or a
            `RiskReport`.
        labels: Integer classes (n,), for the shares of every class; taken from
            `Observations` that have them.
        exit_names: Names of all exits; `None` shows those of an `ExitResult`
            up to the last one that was taken.
        class_names: Names of the classes, in order; `None` takes numbers.
        path: Where to save the picture (`.png`, `.svg`, `.pdf`), or `None`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: If there are no samples, observations come without
            thresholds, or lengths do not match.

    Example:

    ```python
    result = model.predict_exits(x)
    ee.plots.exit_histogram(result, labels=y, path="exits.png")
    ```
    """
    if hasattr(answers, "exit_index_grid"):
        if thresholds is None:
            raise ValueError(
                "Expected thresholds for observations of all exits. Received: "
                f"thresholds=None and {answers!r}. Pass the model's "
                "`policy.threshold`."
            )
        taken = answers.exit_index(_threshold_of(thresholds))
        exit_names = exit_names or answers.exit_names
        known = answers.labels
        if labels is None and known is not None and known.ndim == 1:
            labels = known
    else:
        taken = np.asarray(answers.exit_index)
        if exit_names is None:
            # Only `final` has no score.
            ends = ["final"] if np.isnan(answers.score).any() else []
            early = taken.max(initial=-1) + 1 - len(ends)
            exit_names = [*(f"exit_{k}" for k in range(early)), *ends]
    names = _checked_names(taken, exit_names)
    overall = np.bincount(taken, minlength=len(names)) / max(len(taken), 1)
    colors = depth_colors(len(names))
    if labels is None:
        figure, axes = make_figure(6.4, 1.1 + 0.38 * len(names))
        _draw_overall(axes, overall, names, colors)
        return finish(figure, path)
    classes, by_class = _shares_by_class(taken, labels, len(names))
    if class_names is not None:
        classes = [str(class_names[k]) for k in classes]
    few = len(classes) <= _MOST_ROWS
    below = 0.27 * len(classes) if few else 4.5
    heights = [0.38 * len(names), below]
    figure, (above, axes) = make_figure(6.4, 1.7 + sum(heights), heights)
    _draw_overall(above, overall, names, colors)
    draw = _draw_stacks if few else _draw_heat_map
    draw(axes, by_class, names, classes, colors)
    return finish(figure, path)


def risk_curve(report, path=None):
    """What each level of risk would have saved, and what was chosen.

    The mean loss on the calibration set and the method's bound on the risk,
    over the mean relative cost at each candidate threshold, around the level
    that was allowed.

    Args:
        report: A `RiskReport`.
        path: Where to save the picture (`.png`, `.svg`, `.pdf`), or `None`.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    percent = report.loss == "zero_one"
    scale, unit = (100, " %") if percent else (1, "")
    walk, level = report.walk, scale * report.epsilon
    costs, risks = 100 * walk.relative_costs, scale * walk.risks
    bounds = scale * walk.bounds
    figure, axes = make_figure(6.4, 4.4)
    blue = SERIES[0]
    axes.fill_between(costs, risks, bounds, color=blue, alpha=0.12, lw=0)
    label = f"mean loss of {report.n} samples"
    axes.plot(costs, risks, "--", color=blue, lw=1.6, label=label)
    label = f"bound on the risk ({report.method})"
    axes.plot(costs, bounds, color=blue, lw=2.2, label=label)
    label = f"allowed: {level:.3g}{unit}"
    axes.axhline(level, color=SERIES[1], lw=1.6, label=label)
    chosen = np.atleast_1d(report.threshold)
    label = "chosen: " + ", ".join(f"{value:.4g}" for value in chosen)
    if np.all(chosen == np.inf):
        label = "chosen: nobody leaves early"
    cost = 100 * report.expected_relative_cost
    _mark(axes, cost, scale * report.risk_bound, "o", INK, label, 10)
    top = min(4 * level, max(bounds.max(), 1.5 * level))
    shown = costs[bounds <= top] if (bounds <= top).any() else costs
    pad = 0.05 * max(np.ptp(shown), 1.0)
    axes.set_xlim(shown.min() - pad, max(shown.max(), 100) + pad)
    axes.set_ylim(min(risks.min(), 0) - 0.05 * top, top)
    axes.set_xlabel("Mean relative cost (% of the plain model)")
    what = f"{report.risk}, {report.loss} loss".replace("_", " ")
    axes.set_ylabel(f"Risk{' (%)' if percent else ''}: {what}")
    add_legend(figure, axes)
    return finish(figure, path)


def _draw_exits(axes, seen, scale, color, drawn):
    """The exits alone; once, where several curves share the same ones."""
    costs, values = 100 * seen.relative_costs, scale * seen.exit_metrics()
    places = np.stack([costs, values])
    if any(np.array_equal(places, other) for other in drawn):
        return
    drawn.append(places)
    label = "one exit alone" if len(drawn) == 1 else None
    _mark(axes, costs, values, "s", color, label, 7)
    for name, cost, value in zip(seen.exit_names, costs, values, strict=True):
        # Below the curve; the last one to the left, where there is room.
        last = cost == costs.max()
        _note(axes, name, cost, value, (-7 if last else 7, -9), MUTED)


def _draw_chosen(axes, seen, threshold, scale, color):
    threshold = _threshold_of(threshold)
    cost = 100 * seen.mean_cost(threshold)
    value = scale * seen.metric(threshold)
    chosen = "thresholds per exit"
    if np.ndim(threshold) == 0:
        chosen = f"threshold {threshold:.3g}"
    label = f"{chosen}: {value:.3g}{_unit(scale)} at {cost:.3g} % cost"
    _mark(axes, cost, value, "o", color, label, 11)


def _mark(axes, x, y, marker, edge, label, size, face="white"):
    """Markers without a line, hollow unless they have a face of their own."""
    width = 2.0 if face == "white" else 1.0
    style = {"ms": size, "mfc": face, "mec": edge, "mew": width, "ls": ""}
    axes.plot(x, y, marker, label=label, zorder=5, **style)


def _note(axes, text, x, y, offset, color):
    """Text beside a point, on the side that the offset (points) says."""
    from matplotlib.patheffects import withStroke

    on_paper = color in (INK, MUTED)
    halo = [withStroke(linewidth=2.5, foreground="white")] if on_paper else []
    axes.annotate(
        text,
        (x, y),
        xytext=offset,
        textcoords="offset points",
        ha="left" if offset[0] > 0 else "right",
        va="center",
        fontsize=9,
        color=color,
        zorder=6,
        path_effects=halo,
    )


def _draw_overall(axes, shares, names, colors):
    rows = np.arange(len(names))
    axes.barh(rows, 100 * shares, color=colors, height=0.72)
    for row, share, color in zip(rows, shares, colors, strict=True):
        inside = share > 0.85
        ink = _readable_on(color) if inside else INK
        offset = (-5 if inside else 5, 0)
        _note(axes, f"{share:.1%}", 100 * share, row, offset, ink)
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("Share of all samples (%)")
    axes.grid(False, axis="y")


def _draw_stacks(axes, shares, names, classes, colors):
    rows = np.arange(len(classes))
    start = np.zeros(len(classes))
    for k, color in enumerate(colors):
        widths = 100 * shares[:, k]
        axes.barh(rows, widths, 0.78, start, color=color, ec="white", lw=0.8)
        ink = _readable_on(color)
        for row in np.flatnonzero(widths >= 7):
            place = (start[row] + widths[row] / 2, row)
            text = f"{widths[row]:.0f}"
            axes.annotate(
                text, place, ha="center", va="center", fontsize=8, color=ink
            )
        start += widths
    # Names of classes are anybody's: no mathematics in them.
    axes.set_yticks(rows, classes, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("Share of each class (%)")
    axes.set_ylabel("Class")
    axes.grid(False)


def _draw_heat_map(axes, shares, names, classes, colors):
    order = np.argsort(shares @ np.arange(len(names)), kind="stable")
    image = axes.imshow(
        100 * shares[order], aspect="auto", cmap="YlGnBu", vmin=0, vmax=100
    )
    axes.set_xticks(np.arange(len(names)), names)
    shown = np.unique(np.linspace(0, len(order) - 1, 25).round().astype(int))
    names = [classes[order[row]] for row in shown]
    axes.set_yticks(shown, names, fontsize=8, parse_math=False)
    axes.set_ylabel(f"{len(classes)} classes, those that leave early on top")
    axes.grid(False)
    bar = axes.figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label("Share of the class (%)")
    bar.outline.set_visible(False)


def _shares_by_class(taken, labels, num_exits):
    """The classes that occur, and their shares (classes, exits)."""
    labels = np.asarray(labels).reshape(len(labels), -1)
    if labels.shape != (len(taken), 1) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"Expected one integer class for each of {len(taken)} samples. "
            f"Received: labels of shape {labels.shape} and dtype "
            f"{labels.dtype}."
        )
    classes, rows = np.unique(labels[:, 0], return_inverse=True)
    counts = np.zeros((len(classes), num_exits))
    np.add.at(counts, (rows, taken), 1)
    return classes, counts / counts.sum(axis=1, keepdims=True)


def _checked_names(taken, exit_names):
    if not len(taken) or taken.max() >= len(exit_names):
        raise ValueError(
            "Expected the answers of at least one sample, and a name for each "
            f"exit. Received: {len(taken)} samples, exits taken up to number "
            f"{taken.max(initial=-1)}, and exit_names={list(exit_names)}. "
            "Pass `exit_names=model.exit_names`."
        )
    return list(exit_names)


def _unit(scale):
    return " %" if scale == 100 else ""


def _threshold_of(chosen):
    return getattr(chosen, "threshold", chosen)


def _readable_on(color):
    is_light = np.dot(color[:3], (0.299, 0.587, 0.114)) > 0.5
    return DARK_TEXT if is_light else LIGHT_TEXT
