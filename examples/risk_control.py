"""What each way of choosing a threshold saves, and what it risks.

Trains a network with early exits, observes samples that it was not trained
on, and then draws calibration sets from them again and again: each method
chooses a threshold for each level of risk, and the rest of the samples says
what that threshold costs and how often the level is missed:

    python examples/risk_control.py                  # digits, about a minute
    python examples/risk_control.py --data mnist --model demo/model.keras

The risk is the performance gap: the accuracy that early exits cost. `per exit`
is `ucb` with a threshold for each exit, taken from a fifth of the calibration
set and tested on the rest. What is drawn and what is left over are parts of
the same samples, so that luck in one is bad luck in the other: where they are
of equal size the share of missed levels comes out about twice too far from 0.
"""

import argparse
import dataclasses
import json
import pathlib
import warnings

import keras
import numpy as np

import keras_earlyexit as ee
from keras_earlyexit.calibration import observe, threshold_sequence

LEVELS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
METHODS = ("empirical", "crc", "ucb", "ltt", "per exit")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained on a data set, and what is drawn from."""

    train: str
    observed: tuple
    drawn: int
    epochs: int
    batch_size: int


SETTINGS = {
    "digits": Settings("train", ("calibration", "test"), 397, 20, 64),
    "mnist": Settings("train[:20000]", ("train[55000:]", "test"), 1000, 2, 128),
    "cifar10": Settings(
        "train[:45000]", ("train[45000:]", "test"), 1000, 8, 128
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=sorted(SETTINGS), default="digits")
    parser.add_argument("--model", help="a trained model.keras of the data")
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--epochs", type=int, help="of the training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default="risk_control")
    options = parser.parse_args()
    settings = SETTINGS[options.data]
    if options.epochs is not None:
        settings = dataclasses.replace(settings, epochs=options.epochs)
    options.output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(options.seed)
    if options.model:
        model = keras.models.load_model(options.model)
    else:
        model = train(options.data, settings)
    parts = [load(options.data, split) for split in settings.observed]
    seen = observe(
        model, *(np.concatenate(both) for both in zip(*parts, strict=True))
    )
    print("Accuracy of each exit alone:", seen.exit_accuracies().round(4))
    rows = measure(model, seen, settings.drawn, options.draws, options.seed)
    print_table(rows, len(seen), settings.drawn, options.draws)
    figures = options.output / "figures.json"
    figures.write_text(json.dumps(rows, indent=1) + "\n")
    picture = options.output / "risk_control.png"
    draw(rows, settings.drawn, picture)
    print(f"Wrote {picture} and {figures}")


def load(name, split):
    x, y = ee.datasets.load(name, split)
    return ee.datasets.normalize(name, x), y


def train(name, settings):
    x, y = load(name, settings.train)
    plain = ee.backbones.resnet_cifar(20, x.shape[1:], 10)
    # Exits that know less than the whole network: there is something to lose.
    model = ee.add_exits(
        plain, exits=[0.12, 0.24], block="pool", policy="max_probability"
    )
    model.compile(keras.optimizers.Adam(2e-3), "eenet_v0")
    print(f"Training on {len(x)} images of {name}")
    model.fit(x, y, settings.batch_size, epochs=settings.epochs, verbose=2)
    return model


def measure(model, seen, drawn, draws, seed):
    """Mean cost and risk of each method at each level, over all draws."""
    right = np.stack(
        [seen.answers(k) == seen.labels for k in range(len(seen.exit_names))],
        axis=1,
    )
    gaps = right[:, -1:].astype("float64") - right
    generator = np.random.default_rng(seed)
    order = [generator.permutation(len(seen)) for _ in range(draws)]
    rows = []
    for method in METHODS:
        for level in LEVELS:
            costs, risks = [], []
            for rows_in_turn in order:
                chosen = choose(
                    model, seen.take(rows_in_turn[:drawn]), method, level
                )
                rest = rows_in_turn[drawn:]
                taken = seen.exit_index(chosen)[rest]
                costs.append(seen.relative_costs[taken].mean())
                risks.append(gaps[rest, taken].mean())
            rows.append(
                {
                    "method": method,
                    "level": level,
                    "cost": float(np.mean(costs)),
                    "cost_spread": float(np.std(costs)),
                    "risk": float(np.mean(risks)),
                    "missed": float(np.mean(np.array(risks) > level)),
                }
            )
    return rows


def choose(model, seen, method, level):
    """The threshold, or thresholds, that a method takes."""
    thresholds = None
    if method == "per exit":
        fifth = len(seen) // 5
        thresholds = threshold_sequence(seen.take(slice(fifth)))
        seen, method = seen.take(slice(fifth, None)), "ucb"
    with warnings.catch_warnings():
        # That nobody leaves is a result here: the cost is the whole model's.
        warnings.filterwarnings("ignore", "Nobody leaves early")
        report = ee.calibrate(
            model,
            seen,
            risk="performance_gap",
            epsilon=level,
            method=method,
            thresholds=thresholds,
        )
    return report.threshold


def print_table(rows, n, drawn, draws):
    print(
        f"\n{draws} draws of {drawn} calibration samples out of {n}; on the "
        "rest: mean relative cost,\nmean risk, and the "
        "share of draws in which the risk is above its level"
    )
    print(f"{'level':>10}" + "".join(f"{level:>19.1%}" for level in LEVELS))
    for method in METHODS:
        cells = [
            f"{row['cost']:>7.3f} {row['risk']:>6.2%} {row['missed']:>4.0%}"
            for row in rows
            if row["method"] == method
        ]
        print(f"{method:>10}" + "".join(f"{cell:>19}" for cell in cells))


def draw(rows, drawn, path):
    """Cost and risk over the level that was allowed, a line per method."""
    from matplotlib.figure import Figure

    figure = Figure((9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    levels = 100 * np.array(LEVELS)
    styles = ("--", "-.", "-", ":", "-")
    colors = ("#888888", "#d55e00", "#0072b2", "#009e73", "#cc79a7")
    for method, style, color in zip(METHODS, styles, colors, strict=True):
        own = [row for row in rows if row["method"] == method]
        look = {"ls": style, "color": color, "marker": "o", "ms": 3.5}
        left.plot(levels, [100 * row["cost"] for row in own], **look)
        right.plot(
            levels, [100 * row["risk"] for row in own], label=method, **look
        )
    right.plot(levels, levels, color="#cccccc", lw=1, label="what is allowed")
    for axes, what in (
        (left, "Mean relative cost (% of the plain model)"),
        (right, "Risk on other samples (% accuracy lost)"),
    ):
        axes.set_xscale("log")
        axes.set_xticks(levels, [f"{level:g}" for level in levels])
        axes.minorticks_off()
        axes.set_xlabel("Risk that is allowed (%)")
        axes.set_ylabel(what)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    right.legend(frameon=False)
    figure.suptitle(f"{drawn} calibration samples", fontsize=11)
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    main()
