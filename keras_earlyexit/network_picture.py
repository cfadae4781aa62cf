"""Draws a network with exits as a river: what flows on, and what leaves.

One row for each exit, so that three and thirty of them are read alike: on the
left the stage that ends there and what it costs, in the middle the samples
that go on or leave, on the right the exit.
"""

import numpy as np

from keras_earlyexit.drawing import INK, MUTED, depth_colors, finish

_RIVER = "#8C9AA8"
_WIDTH = 8.8
_TOP = 0.62
# Inches from the left: text that ends, or starts, there.
_STAGE, _ADDS, _ARRIVE = 0.15, 3.5, 4.15
_SOURCE, _MOUTH = 4.35, 5.75
_EXIT, _LEAVE, _COST, _THRESHOLD = 5.85, 7.25, 7.9, 8.65
_LONGEST = 27
# Widths of the river in inches: of all samples, the thinnest, and where nobody
# knows who leaves.
_FULL, _THINNEST, _BARE = 0.8, 0.012, 0.16


def network(model, result=None, path=None):
    """Draws a network with its exits, what they cost and who takes them.

    From top to bottom: each stage with the layer that its exit hangs on, the
    shape of the feature there, and how much it adds to the cost; then the
    share of the samples that arrive and that leave, as a river.

    Args:
        model: An `EarlyExitModel`.
        result: An `ExitResult` of the model; `Observations`, which are routed
            by the model's present thresholds; or `None`, which draws the
            network without shares.
        path: Where to save the picture (`.png`, `.svg`, `.pdf`), or `None`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        TypeError: If `model` has no exits.
        ValueError: If `result` has other exits than the model, or no samples.

    Example:

    ```python
    result = model.predict_exits(x)
    ee.plots.network(model, result, path="network.png")
    ```
    """
    from matplotlib.figure import Figure

    if not hasattr(model, "exit_graph"):
        raise TypeError(
            "Expected a model with exits. Received: "
            f"{model!r} (of type {type(model).__name__}). Use "
            "`ee.add_exits(model)`."
        )
    names = model.exit_names
    shares = None if result is None else _shares(model, result)
    # Thirty rows fit a page, three are not lost on it.
    step = float(np.clip(5.4 / len(names), 0.33, 0.75))
    height = _TOP + step * len(names) + 0.3
    figure = Figure(figsize=(_WIDTH, height), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, _WIDTH)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    places = _TOP + step * (np.arange(len(names)) + 1)
    _draw_river(axes, shares, places, step, len(names))
    _write_stages(axes, model, shares, places, step)
    _write_exits(axes, model, shares, places, step)
    return finish(figure, path)


def _shares(model, result):
    count = len(model.exit_names)
    if hasattr(result, "exit_index_grid"):
        if result.exit_names != model.exit_names:
            _refuse(model, f"observations of {', '.join(result.exit_names)}")
        return result.exit_shares(model.policy.threshold)
    if not len(result):
        _refuse(model, "a result without samples")
    shares = result.exit_shares(count)
    if len(shares) > count:
        _refuse(model, f"a result with exits up to number {len(shares) - 1}")
    return shares


def _refuse(model, received):
    raise ValueError(
        f"Expected answers at the exits {', '.join(model.exit_names)}. "
        f"Received: {received}. Pass `model.predict_exits(x)`."
    )


def _draw_river(axes, shares, places, step, count):
    """A band for what is inside, from which each exit takes its part."""
    inside, leaving = np.full(count, _BARE), np.full(count, _BARE / 2)
    thickness = leaving
    inside[-1] = leaving[-1]
    if shares is not None:
        leaving = _FULL * shares
        inside = np.cumsum(leaving[::-1])[::-1]
        # As wide as the river, where the rows have room for that.
        thickness = min(_FULL, 0.8 * step) * shares
    colors = depth_colors(count)
    radius = 0.14 * step
    above = places[0] - step
    for k, place in enumerate(places):
        # Where the part that leaves begins to turn right.
        turn = place - thickness[k] / 2 - radius
        if inside[k] > 0:
            width = max(inside[k], _THINNEST)
            axes.add_patch(_stream(width, above, turn))
        if leaving[k] > 0:
            width = max(leaving[k], _THINNEST)
            start = _SOURCE + max(inside[k] - width, 0)
            half = max(thickness[k], _THINNEST) / 2
            axes.add_patch(
                _branch(
                    (start, start + width),
                    turn,
                    (place - half, place + half),
                    radius,
                    colors[k],
                )
            )
        above = turn


def _stream(width, top, bottom):
    from matplotlib.patches import Rectangle

    return Rectangle((_SOURCE, top), width, bottom - top, fc=_RIVER, lw=0)


def _branch(sides, turn, edges, radius, color):
    """From the river's `sides`, at the height `turn`, to between `edges`."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    (left, right), (top, bottom) = sides, edges
    move, line, curve = Path.MOVETO, Path.LINETO, Path.CURVE3
    outline = [
        (move, right, turn),
        (curve, right, top),
        (curve, right + radius, top),
        (line, _MOUTH, top),
        (line, _MOUTH, bottom),
        (line, right + radius, bottom),
        (curve, left, bottom),
        (curve, left, turn),
    ]
    path = Path([(x, y) for _, x, y in outline], [code for code, *_ in outline])
    return PathPatch(path, fc=color, lw=0)


def _write_stages(axes, model, shares, places, step):
    write = _writer(axes)
    source = places[0] - step
    heading = source - 0.34
    write(_STAGE, heading, "stage: layers up to, shape", MUTED)
    write(_ADDS, heading, "adds cost", MUTED, "right")
    shapes = " + ".join(_shape(x) for x in model.net.inputs)
    write(_STAGE, source, "input", INK)
    write(_STAGE + 2.0, source, _short(shapes), MUTED)
    layers = [*model.exit_layers, "(its own head)"]
    shapes = [*map(_shape, model.exit_graph.features), ""]
    costs = np.diff(model.relative_costs, prepend=0.0)
    for k, place in enumerate(places):
        write(_STAGE, place, _short(layers[k]), INK)
        write(_STAGE + 2.0, place, shapes[k], MUTED)
        write(_ADDS, place, f"+{costs[k]:.3f}", INK, "right")
    if shares is None:
        return
    write(_ARRIVE, heading, "arrive", MUTED, "right")
    arrive = np.cumsum(shares[::-1])[::-1]
    for share, place in zip(arrive, places, strict=True):
        write(_ARRIVE, place, f"{share:.1%}", INK, "right")


def _write_exits(axes, model, shares, places, step):
    write = _writer(axes)
    heading = places[0] - step - 0.34
    write(_EXIT, heading, "exit", MUTED)
    write(_COST, heading, "cost", MUTED, "right")
    write(_THRESHOLD, heading, "threshold", MUTED, "right")
    thresholds = model.policy.thresholds(len(places) - 1)
    thresholds = [*(f"{value:.3g}" for value in thresholds), "-"]
    for k, place in enumerate(places):
        write(_EXIT, place, model.exit_names[k], INK)
        write(_COST, place, f"{model.relative_costs[k]:.3f}", INK, "right")
        write(_THRESHOLD, place, thresholds[k], INK, "right")
    if shares is None:
        return
    write(_LEAVE, heading, "leave", MUTED, "right")
    for share, place in zip(shares, places, strict=True):
        write(_LEAVE, place, f"{share:.1%}", INK, "right")


def _writer(axes):
    def write(x, y, text, color, ha="left"):
        # Names of layers are anybody's: no mathematics in them.
        style = {"ha": ha, "va": "center", "fontsize": 9, "color": color}
        axes.text(x, y, text, parse_math=False, **style)

    return write


def _shape(tensor):
    sizes = ["any" if size is None else str(size) for size in tensor.shape[1:]]
    return "×".join(sizes)


def _short(name):
    if len(name) <= _LONGEST:
        return name
    half = (_LONGEST - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
