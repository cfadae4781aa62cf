"""Pictures of a search: its front, its trials, and where exits went."""

import numpy as np

from keras_earlyexit.drawing import (
    INK,
    MUTED,
    SERIES,
    add_legend,
    finish,
    make_figure,
)
from keras_earlyexit.tuning.front import pareto_front
from keras_earlyexit.tuning.records import best_of

_MARKERS = "*PXDv^"
# What the tuner keeps for itself, and places that say nothing by themselves.
_NOT_SHOWN = ("tuner/", "place_")
_LOGARITHMIC = ("learning_rate", "cost_weight")


def plot_front(trials, *, references=None, budget=None, path=None):
    """What every trial gets for its cost, and what no other beats.

    Small points and thin lines are trials, with the curves that other
    thresholds of the same model would give. The thick line is what is best
    for each cost over all of them, and the ring the trial with the best
    score.

    Args:
        trials: List of `TrialRecord`.
        references: Dict by name of `(relative cost, metric)`: static models,
            which spend the same on every sample.
        budget: Mean relative cost that may be spent, or `None`.
        path: Where to save the picture (`.png`, `.svg`, `.pdf`), or `None`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: If no trial has been judged.

    Example:

    ```python
    trials = ee.tuning.read_trials(tuner.project_dir)
    ee.tuning.plot_front(trials, references={"plain": (1.0, 0.97)})
    ```
    """
    judged = _judged(trials)
    sign, scale, label = _units(judged)
    figure, axes = make_figure(6.8, 5.0)
    for k, trial in enumerate(judged):
        costs, values = np.transpose(trial.curve)
        axes.step(
            100 * costs,
            scale * values,
            where="post",
            color=MUTED,
            lw=0.7,
            alpha=0.35,
            label="a trial, by threshold" if k == 0 else None,
        )
    points = np.array([(trial.mean_cost, trial.metric) for trial in judged])
    axes.plot(
        100 * points[:, 0],
        scale * points[:, 1],
        "o",
        ms=5,
        color=SERIES[4],
        mec="white",
        mew=0.6,
        label="its chosen thresholds",
    )
    ends = np.array([point for trial in judged for point in trial.curve])
    ends = np.concatenate([ends, points])
    front = ends[pareto_front(ends[:, 0], sign * ends[:, 1])]
    axes.step(
        100 * front[:, 0],
        scale * front[:, 1],
        where="post",
        color=SERIES[0],
        lw=2.2,
        label="front of all trials",
    )
    best = best_of(judged)
    axes.plot(
        100 * best.mean_cost,
        scale * best.metric,
        "o",
        ms=12,
        mfc="none",
        mec=SERIES[1],
        mew=2.2,
        label=f"trial {best.id}: {scale * best.metric:.3g}"
        f"{'%' if scale == 100 else ''} for "
        f"{best.mean_cost:.1%}",
    )
    for k, (name, (cost, value)) in enumerate((references or {}).items()):
        axes.plot(
            100 * cost,
            scale * value,
            _MARKERS[k % len(_MARKERS)],
            ms=13,
            mfc="white",
            mec=INK,
            mew=1.6,
            ls="",
            label=name,
        )
    if budget is not None:
        axes.axvline(
            100 * budget, color=SERIES[1], lw=1.2, ls="--", label="budget"
        )
    axes.set_xlabel("Mean relative cost (% of the network without exits)")
    axes.set_ylabel(f"{label} on the validation split")
    axes.margins(0.06)
    add_legend(figure, axes)
    return finish(figure, path)


def plot_trials(trials, path=None):
    """All trials as lines through their hyperparameters and figures.

    An axis for every hyperparameter that differs, one for the relative cost of
    each exit, and one each for the mean cost, the metric and the score, unless
    that is the metric. Colours go by the score, from light to
    dark; a hyperparameter that a trial does not have is left out of its line.

    Args:
        trials: List of `TrialRecord`.
        path: Where to save the picture (`.png`, `.svg`, `.pdf`), or `None`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: If no trial has been judged.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    judged = sorted(_judged(trials), key=lambda trial: trial.score)
    _, scale, label = _units(judged)
    columns = _columns(judged)
    columns["mean cost (%)"] = [100 * trial.mean_cost for trial in judged]
    columns[label] = [scale * trial.metric for trial in judged]
    scores = [trial.score for trial in judged]
    if scores != [trial.worth for trial in judged]:
        columns["score"] = scores
    width = max(6.8, 1.25 * len(columns))
    figure = Figure(figsize=(width, 4.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    rows = np.full((len(judged), len(columns)), np.nan)
    for k, (name, values) in enumerate(columns.items()):
        rows[:, k], ticks = _heights(name, values)
        axes.axvline(k, color=MUTED, lw=0.9, zorder=1)
        for height, text in ticks:
            _tick(axes, k, height, text)
    for row, score in zip(rows, rows[:, -1], strict=True):
        there = ~np.isnan(row)
        color = colormaps["YlGnBu"](0.25 + 0.7 * score)
        axes.plot(
            np.flatnonzero(there),
            row[there],
            color=color,
            lw=0.8 + 1.6 * score,
            alpha=0.85,
            zorder=2 + score,
        )
    axes.set_xlim(-0.3, len(columns) - 0.5)
    axes.set_ylim(-0.06, 1.06)
    axes.set_xticks(range(len(columns)), [_wrapped(n) for n in columns])
    axes.tick_params(length=0, labelcolor=INK, labelsize=9)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return finish(figure, path)


def plot_places(trials, path=None):
    """Where the exits of every trial lie, the best trial on top.

    Args:
        trials: List of `TrialRecord`.
        path: Where to save the picture (`.png`, `.svg`, `.pdf`), or `None`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: If no trial has been judged.
    """
    from matplotlib import colormaps

    judged = sorted(_judged(trials), key=lambda trial: -trial.score)
    figure, axes = make_figure(6.8, 1.6 + 0.2 * min(len(judged), 60))
    names = {}
    for row, trial in enumerate(judged):
        depth = 0.3 + 0.65 * (1 - row / len(judged))
        costs = 100 * np.array(trial.relative_costs[:-1])
        axes.plot([0, 100], [row, row], color="#EEEEEE", lw=1.0, zorder=1)
        axes.scatter(
            costs, [row] * len(costs), s=42, color=colormaps["YlGnBu"](depth)
        )
        for name, cost in zip(trial.exit_layers, costs, strict=True):
            names.setdefault(name, []).append(cost)
    labels = sorted((np.mean(costs), name) for name, costs in names.items())
    above = axes.secondary_xaxis("top")
    shown = _apart(labels, 100 / 18)
    above.set_xticks(
        [cost for cost, _ in shown],
        [name for _, name in shown],
        rotation=40,
        ha="left",
        fontsize=8,
    )
    axes.set_yticks(
        range(len(judged)), [trial.id for trial in judged], fontsize=8
    )
    axes.set_ylim(len(judged) - 0.4, -0.6)
    axes.set_ylabel("Trial, best first")
    axes.set_xlabel("Relative cost of leaving there (%)")
    axes.grid(False, axis="y")
    return finish(figure, path)


def _wrapped(name):
    return name if name.startswith("exit_") else name.replace("_", "\n")


def _judged(trials):
    judged = [trial for trial in trials if trial.is_judged]
    if not judged:
        raise ValueError(
            "Expected at least one trial with figures. Received: "
            f"{len(list(trials))} trials, none of them completed."
        )
    return judged


def _units(judged):
    if judged[0].metric_name == "accuracy":
        return 1, 100, "Accuracy (%)"
    return -1, 1, "Mean absolute error"


def _columns(judged):
    """Hyperparameters that differ: lists with `None` where there is none."""
    names = dict.fromkeys(name for trial in judged for name in trial.values)
    columns = {}
    for name in names:
        values = [trial.values.get(name) for trial in judged]
        if len(set(values)) > 1 and not name.startswith(_NOT_SHOWN):
            columns[name] = values
    most = max(len(trial.exit_layers) for trial in judged)
    for k in range(most):
        columns[f"exit_{k} (%)"] = [
            100 * trial.relative_costs[k]
            if k < len(trial.exit_layers)
            else None
            for trial in judged
        ]
    return columns


def _heights(name, values):
    """Places on an axis from 0 to 1, and what is written beside it."""
    known = [value for value in values if value is not None]
    if any(isinstance(value, (str, bool)) for value in known):
        options = sorted(set(map(str, known)))
        step = 1 / max(len(options) - 1, 1)
        place = {text: k * step for k, text in enumerate(options)}
        heights = [np.nan if v is None else place[str(v)] for v in values]
        return heights, [(height, text) for text, height in place.items()]
    numbers = np.array([np.nan if v is None else float(v) for v in values])
    scale = np.log if name in _LOGARITHMIC else np.asarray
    low, high = np.nanmin(numbers), np.nanmax(numbers)
    span = scale(high) - scale(low)
    heights = (scale(numbers) - scale(low)) / (span or 1.0)
    if not span:
        return heights * 0 + 0.5, [(0.5, f"{low:.3g}")]
    ends = {low, high}
    if all(isinstance(value, int) for value in known) and high - low < 8:
        ends = set(known)
    return heights, [
        (float((scale(end) - scale(low)) / span), f"{end:.3g}")
        for end in sorted(ends)
    ]


def _tick(axes, place, height, text):
    from matplotlib.patheffects import withStroke

    axes.annotate(
        text,
        (place, height),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=INK,
        zorder=6,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )


def _apart(labels, distance):
    """Labels that do not lie over each other."""
    shown = []
    for place, name in labels:
        if not shown or place - shown[-1][0] >= distance:
            shown.append((place, name))
    return shown
