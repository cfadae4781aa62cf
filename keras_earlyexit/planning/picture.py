"""Draws a plan: time, bytes and memory of every way to run a model."""

import numpy as np

from keras_earlyexit.drawing import INK, MUTED, SERIES, finish, make_figure
from keras_earlyexit.planning import wording

_BAND = "#FFF3C4"
_TIME = {"edge": SERIES[0], "link": SERIES[5], "cloud": SERIES[4]}
_BYTES = {"up": SERIES[2], "down": SERIES[3]}
_MEMORY = {
    "weights": "#3B3B3B",
    "optimizer": "#7F7F7F",
    "activations": "#BDBDBD",
}


def draw(plan, path=None):
    """Draws a plan; see `Plan.plot`."""
    rows = wording.shown(plan)
    height = 1.9 + 0.27 * len(rows)
    figure, (time, traffic, memory) = make_figure(10.5, height, columns=3)
    figure.suptitle(wording.title(plan), fontsize=10, color=INK)
    each = "sample" if plan.mode == "infer" else "batch"
    _draw_time(time, plan, rows, each)
    scale, unit = _bytes_scale(max(row.num_bytes for row in rows))
    parts = {
        "up": [row.bytes_up for row in rows],
        "down": [row.bytes_down for row in rows],
    }
    _bars(traffic, plan, rows, parts, _BYTES, scale)
    traffic.set_xlabel(f"Over the link, a {each} ({unit})")
    _draw_memory(memory, plan, rows)
    for axes in (time, traffic, memory):
        _dress(axes, plan, rows)
    _name_rows(time, plan, rows)
    return finish(figure, path)


def _draw_time(axes, plan, rows, each):
    parts = {
        name: [getattr(row, f"{name}_seconds") for row in rows]
        for name in _TIME
    }
    largest = max(map(sum, zip(*parts.values(), strict=True)))
    scale, unit = _scaled(largest, ((1, "s"), (1e-3, "ms"), (1e-6, "us")))
    _bars(axes, plan, rows, parts, _TIME, scale)
    # Parts that work at the same time add up to more than it takes.
    axes.plot(
        [row.seconds / scale for row in rows],
        np.arange(len(rows)),
        "D",
        color=INK,
        mec="white",
        ms=6,
        ls="",
        label="in all",
        zorder=5,
    )
    axes.set_xlabel(f"Time a {each} ({unit})")


def _draw_memory(axes, plan, rows):
    limit = plan.memory_limit
    used = [row.edge_bytes for row in rows]
    scale, unit = _bytes_scale(max(used if limit is None else [*used, limit]))
    parts = {
        "weights": [row.parameter_bytes for row in rows],
        "optimizer": [row.optimizer_bytes for row in rows],
        "activations": [row.activation_bytes for row in rows],
    }
    _bars(axes, plan, rows, parts, _MEMORY, scale)
    if limit is not None:
        label = f"limit, {wording.num_bytes(limit)}"
        axes.axvline(limit / scale, color=SERIES[1], lw=2, label=label)
    axes.set_xlabel(f"Memory at the edge ({unit})")


def _bars(axes, plan, rows, parts, colors, scale):
    """Stacked bars, one for each row; what does not fit is pale."""
    places, start = np.arange(len(rows)), np.zeros(len(rows))
    for name, values in parts.items():
        widths = np.array(values, "float64") / scale
        color = colors[name]
        bars = axes.barh(places, widths, 0.7, start, color=color, label=name)
        for bar, row in zip(bars, rows, strict=True):
            bar.set_alpha(1.0 if plan.fits(row) else 0.3)
        start += widths


def _dress(axes, plan, rows):
    axes.set_xlim(left=0)
    axes.grid(False, axis="y")
    if plan.best in rows:
        place = rows.index(plan.best)
        axes.axhspan(place - 0.5, place + 0.5, color=_BAND, zorder=0)
    handles, labels = axes.get_legend_handles_labels()
    legend = axes.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        frameon=False,
        ncols=2,
        fontsize=8,
    )
    for handle in legend.legend_handles:
        handle.set_alpha(1.0)


def _name_rows(axes, plan, rows):
    marks = {plan.choice: "best of all: ", plan.best: "best cut: "}
    names = [f"{marks.get(row, '')}{wording.label(row)}" for row in rows]
    axes.set_yticks(np.arange(len(rows)), names)
    for row, text in zip(rows, axes.get_yticklabels(), strict=True):
        text.set_color(INK if plan.fits(row) else MUTED)
        text.set_fontweight("bold" if row == plan.best else "normal")
    axes.set_ylim(len(rows) - 0.4, -0.6)


def _scaled(largest, units):
    for scale, unit in units:
        if largest >= scale:
            return scale, unit
    return units[-1]


def _bytes_scale(largest):
    return _scaled(largest, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")))
