"""What all pictures look like: colours, axes, legends.

matplotlib is imported by the functions, and its state of the process is
neither used nor changed.
"""

import numpy as np

# Okabe and Ito's colours, which stay apart for every kind of colour vision.
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
INK, MUTED, GRID = "#222222", "#666666", "#E3E3E3"
# Text on something coloured, which stays as it is on a dark page.
DARK_TEXT, LIGHT_TEXT = "#1A1A1A", "#FDFDFD"


def make_figure(width, height, heights=None, columns=1, shares=True):
    """A figure, and its axes.

    Args:
        width: In inches.
        height: In inches.
        heights: Ratios of as many axes above each other, or `None`.
        columns: How many axes stand beside each other.
        shares: Whether those have the same rows.

    Returns:
        The figure and its axes: one, or an array of them.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    rows = 1 if heights is None else len(heights)
    made = figure.subplots(
        rows,
        columns,
        squeeze=False,
        height_ratios=heights,
        sharey="row" if shares and columns > 1 else False,
    ).ravel()
    for axes in made:
        axes.set_axisbelow(True)
        axes.grid(color=GRID, lw=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(MUTED)
        axes.tick_params(color=MUTED, labelcolor=INK)
    return figure, made[0] if len(made) == 1 and heights is None else made


def add_legend(figure, axes, columns=2):
    """Puts the legend of some axes below a figure."""
    handles, labels = axes.get_legend_handles_labels()
    place = "outside lower center"
    legend = figure.legend(
        handles, labels, loc=place, frameon=False, ncols=columns
    )
    for text in legend.get_texts():
        # Names are anybody's: no mathematics in them.
        text.set_parse_math(False)


def finish(figure, path):
    """Saves a figure if there is a path, and returns it."""
    if path is not None:
        figure.savefig(path)
    return figure


def depth_colors(count):
    """A colour for each exit: light for the first, dark for `final`.

    The ends of the range would be lost on white, or on black.
    """
    from matplotlib import colormaps

    return [
        colormaps["YlGnBu"](depth) for depth in np.linspace(0.35, 0.78, count)
    ]
