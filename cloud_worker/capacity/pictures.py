"""Draws how a worker does as the number of its edges grows."""

import numpy as np

from keras_earlyexit.drawing import INK, MUTED, SERIES, finish, make_figure


def draw(points, title, path=None, measured=()):
    """Throughput, time to an answer, cores and cost over the number of edges.

    Args:
        points: List of `Point`, by rising number of edges.
        title: What stands above.
        path: File to write, or `None`.
        measured: Dicts of `edges`, `answered_per_second`, `p50_ms`, `p99_ms`
            and `worker_cores`, as `edge-worker load` writes them.

    Returns:
        A matplotlib figure.
    """
    figure, axes = make_figure(
        9.5, 6.2, heights=(1, 1), columns=2, shares=False
    )
    figure.suptitle(title, fontsize=10, color=INK)
    edges = np.array([x.edges for x in points])
    rate, time, cores, cost = axes
    _line(rate, edges, [x.offered_per_second for x in points], MUTED, "offered")
    _line(
        rate,
        edges,
        [x.answered_per_second for x in points],
        SERIES[0],
        "answered in time",
    )
    rate.set_ylabel("Calls a second")
    for name, field, color in (("median", "p50_s", 0), ("p99", "p99_s", 1)):
        values = [1e3 * getattr(x, field) for x in points]
        _line(time, edges, values, SERIES[color], name)
    time.set_ylabel("Time to an answer (ms)")
    _line(cores, edges, [x.cores_used for x in points], SERIES[2], "simulated")
    cores.set_ylabel("Cores that are busy")
    cores.set_ylim(bottom=0)
    _line(cost, edges, [x.cost_per_million for x in points], SERIES[3], "")
    cost.set_ylabel("Cost of a million answers")
    for one in (rate, time, cost):
        one.set_yscale("log")
    for one in axes:
        one.set_xscale("log")
        one.set_xlabel("Edges")
    _dots(rate, measured, "answered_per_second", SERIES[0])
    _dots(time, measured, "p50_ms", SERIES[0])
    _dots(time, measured, "p99_ms", SERIES[1])
    _dots(cores, measured, "worker_cores", SERIES[2])
    _bottlenecks(cost, points)
    for one in (rate, time, cores):
        one.legend(frameon=False, fontsize=8)
    return finish(figure, path)


def _line(axes, edges, values, color, label):
    axes.plot(edges, values, color=color, lw=1.8, label=label)


def _dots(axes, measured, field, color):
    axes.plot(
        [x["edges"] for x in measured],
        [x[field] for x in measured],
        "o",
        color=color,
        mec=INK,
        ms=5,
        ls="",
        label="measured" if measured else None,
    )


def _bottlenecks(axes, points):
    """Names what is busy most where that changes."""
    before = None
    for x in points:
        if x.bottleneck != before and np.isfinite(x.cost_per_million):
            axes.annotate(
                x.bottleneck,
                (x.edges, x.cost_per_million),
                xytext=(4, 8),
                textcoords="offset points",
                fontsize=8,
                color=INK,
            )
            axes.plot(x.edges, x.cost_per_million, "o", color=INK, ms=3)
        before = x.bottleneck
