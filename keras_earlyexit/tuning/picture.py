"""The picture of a search: what it costs to be how accurate."""

import itertools

import numpy as np

from keras_earlyexit.drawing import (
    INK,
    MUTED,
    SERIES,
    add_legend,
    finish,
    make_figure,
)
from keras_earlyexit.tuning.candidates import kinds_of


def draw(found, test=None, path=None):
    """Draws the front of an `ExitSearch`.

    Args:
        found: The `ExitSearch`.
        test: Points as `found.measure` returned them, or `None`.
        path: Where to save the picture (`.png`, `.svg`, `.pdf`), or `None`.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    percent = found.unit == "relative cost"
    scale = 100 if percent else 1
    figure, (axes, below) = make_figure(6.4, 6.0, heights=[3, 1.4])
    blue, orange = SERIES[:2]
    costs = scale * np.array([point.cost for point in found.front])
    values = 100 * np.array([point.accuracy for point in found.front])
    label = f"best of {found.evaluated:,} configurations"
    axes.step(costs, values, where="post", color=blue, lw=2.2, label=label)
    if test is not None:
        axes.plot(
            [scale * point.cost for point in test],
            [100 * point.accuracy for point in test],
            ".",
            color=orange,
            ms=5,
            label="the same on test samples",
        )
    axes.plot(
        scale * found.plain.cost,
        100 * found.plain.accuracy,
        "*",
        color="white",
        mec=INK,
        ms=14,
        label="plain model",
    )
    if found.best is not None:
        axes.plot(
            scale * found.best.cost,
            100 * found.best.accuracy,
            "o",
            mfc="none",
            mec=INK,
            mew=1.6,
            ms=11,
            label="chosen",
        )
    axes.set_ylabel("Accuracy (%)")
    axes.margins(0.06)
    colors = _draw_exits(below, found, costs)
    for kind, color in colors.items() if len(colors) > 1 else ():
        label = f"exit with a {kind} block"
        axes.plot([], [], "s", color=color, ms=4, label=label)
    below.set_xlim(axes.get_xlim())
    unit = "% of the plain model" if percent else found.unit
    below.set_xlabel(f"Mean cost ({unit})")
    add_legend(figure, axes)
    return finish(figure, path)


def _draw_exits(axes, found, costs):
    """Which candidates each point of the front has, the deepest on top.

    Returns the colour of each kind of block.
    """
    layers = list(dict.fromkeys(found.model.exit_layers))
    kinds = kinds_of(found.model)
    # The colour of the front first, and not that of the test samples.
    palette = itertools.cycle((SERIES[0], *SERIES[2:]))
    colors = dict(zip(dict.fromkeys(kinds), palette, strict=False))
    for kind, color in colors.items():
        marks = [
            (cost, layers.index(name))
            for cost, point in zip(costs, found.front, strict=True)
            for i, name in zip(point.candidates, point.exits, strict=True)
            if kinds[i] == kind
        ]
        columns = np.reshape(marks, (-1, 2)).T
        axes.plot(*columns, "s", color=color, ms=2.5)
    axes.set_yticks(range(len(layers)), layers, fontsize=7)
    axes.set_ylim(-0.6, len(layers) - 0.4)
    axes.set_ylabel("Exits", color=MUTED)
    return colors
