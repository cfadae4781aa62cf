"""Pictures of the report: inline SVG that is as light or dark as the page.

Why the colours are replaced: a picture with a background of its own glares on
a dark page, and black letters without one are lost there. Ink, grid and paper
are the page's own colours; the colours of curves and bars can be told from
both black and white.
"""

import io
import re

import numpy as np

from keras_earlyexit.drawing import (
    GRID,
    INK,
    MUTED,
    SERIES,
    add_legend,
    depth_colors,
    make_figure,
)

_PAGE_COLORS = {
    INK: "currentColor",
    "#000000": "currentColor",
    MUTED: "var(--muted)",
    GRID.lower(): "var(--line)",
    "#ffffff": "var(--paper)",
}
_COLOR = re.compile("|".join(_PAGE_COLORS))
# What refers to an id, and the id itself.
_ID = re.compile(r'(\bid="|url\(#|href="#)')
_MOST_PANELS = 6
_NARROW = 4.6
_WHEN = ("as it is", "after temperature")


def as_svg(figure, name):
    """A figure as SVG for a page.

    Args:
        figure: A `matplotlib.figure.Figure`.
        name: A word that no other picture of the page has.

    Returns:
        A string, an `svg` element without a size of its own.
    """
    import matplotlib

    file = io.StringIO()
    # Text stays text: it can be searched, read aloud, and is small. With the
    # salt the same picture is the same file.
    settings = {"svg.fonttype": "none", "svg.hashsalt": name}
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(settings):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = _COLOR.sub(lambda found: _PAGE_COLORS[found[0]], text)
    text = _ID.sub(rf"\g<1>{name}-", text)
    # Scaled by the page; the view box keeps the proportions.
    opening, rest = text.split(">", 1)
    opening = re.sub(r'\s(width|height)="[^"]*"', "", opening)
    return f'{opening} role="img" aria-label="{name}">{rest}'


def narrow(figure, longer=0.0):
    """Makes a figure as narrow as a telephone, where letters stay legible.

    Args:
        figure: A `matplotlib.figure.Figure`.
        longer: Inches to add below, for a legend of one column.

    Returns:
        The figure.
    """
    height = figure.get_figheight()
    for legend in list(figure.legends):
        legend.remove()
        add_legend(figure, figure.axes[0], columns=1)
    figure.set_size_inches(_NARROW, height + longer)
    return figure


def reliability(panels):
    """Reliability diagrams of some exits, before and after temperature.

    Args:
        panels: Dict by exit name of two `ReliabilityData`, before and after.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    names = list(panels)
    if len(names) > _MOST_PANELS:
        places = np.linspace(0, len(names) - 1, _MOST_PANELS).round()
        names = [names[int(place)] for place in places]
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    figure, axes = make_figure(_NARROW, 2.5 * rows + 0.5, [1] * rows, columns)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes, names, strict=False):
        axis.plot([0, 100], [0, 100], color=MUTED, lw=1, ls=":")
        for data, label, color in zip(
            panels[name], _WHEN, SERIES, strict=False
        ):
            full = data.count > 0
            shares = data.count[full] / data.count.sum()
            points = 100 * data.confidence[full], 100 * data.accuracy[full]
            axis.plot(*points, color=color, lw=1.2, alpha=0.6)
            # Bins with few samples say little, so they are small.
            sizes = 8 + 160 * np.sqrt(shares)
            style = {"ec": color, "lw": 1.4, "label": label}
            style["fc"] = "none" if label == _WHEN[0] else color
            axis.scatter(*points, sizes, **style)
        before, after = (x.expected_calibration_error for x in panels[name])
        title = f"{name}: ECE {before:.1%}, then {after:.1%}"
        axis.set_title(title, fontsize=9, color=INK)
        axis.set_xlim(0, 105)
        axis.set_ylim(-5, 105)
        axis.set_xlabel("Confidence (%)")
    for axis in axes[::columns]:
        axis.set_ylabel("Accuracy (%)")
    add_legend(figure, axes[0])
    return figure


def latency(profile):
    """Milliseconds of each stage, for a single sample and in a batch.

    Args:
        profile: A `DeviceProfile`.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    sizes = sorted({profile.batch_sizes[0], profile.batch_sizes[-1]})
    names = profile.stage_names
    figure, axes = make_figure(
        _NARROW, 0.9 + 0.3 * len(names), [1], columns=len(sizes)
    )
    places = np.arange(len(names))
    for axis, size in zip(axes, sizes, strict=True):
        column = profile.batch_sizes.index(size)
        typical, late = (
            np.array([1000 * getattr(x, field)[column] for x in profile.stages])
            / size
            for field in ("seconds", "p95_seconds")
        )
        colors = depth_colors(len(names))
        axis.barh(places, typical, 0.7, color=colors)
        width = np.maximum(late - typical, 0)
        error = np.stack([np.zeros(len(names)), width])
        style = {"fmt": "none", "ecolor": MUTED, "elinewidth": 1, "capsize": 3}
        axis.errorbar(typical, places, xerr=error, **style)
        axis.set_xlabel(
            "ms, alone" if size == 1 else f"ms each, {size} together"
        )
        axis.set_xlim(left=0)
        axis.grid(False, axis="y")
    axes[0].set_yticks(places, names)
    axes[0].invert_yaxis()
    return figure
