"""What each way of choosing a threshold saves, and what it risks.

Trains a network with early exits, observes samples that it was not trained
on, and then draws calibration sets of several sizes from them again and again:
each method chooses a threshold for each level of risk, and other samples say
what that threshold costs and how often the level is missed:

    python examples/risk_control.py                  # digits, a minute or two
    python examples/risk_control.py --data mnist --model demo/model.keras

The risk is the performance gap: the accuracy that early exits cost. `per exit`
is `ucb` with a threshold for each exit, taken from a fifth of the calibration
set and tested on the rest.

Sets are drawn in two ways. As *splits*, what is left over is the test: luck in
one part is then bad luck in the other, so that levels are missed too often
where a set is a large part of the samples. *With replacement*, all samples are
the test, and are all that there is: the true risk is known.
"""

import argparse
import dataclasses
import json
import pathlib
import warnings

import keras
import numpy as np
from scipy import stats

import keras_earlyexit as ee
from keras_earlyexit import drawing
from keras_earlyexit.calibration import observe, threshold_sequence

LEVELS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
DELTA = 0.1
METHODS = ("empirical", "crc", "ucb", "ltt", "per exit")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained on a data set, and what is drawn from."""

    train: str
    observed: tuple
    sizes: tuple
    epochs: int
    batch_size: int


SETTINGS = {
    "digits": Settings("train", ("calibration", "test"), (100, 397), 20, 64),
    "mnist": Settings(
        "train[:20000]", ("train[55000:]", "test"), (100, 1000, 5000), 2, 128
    ),
    "cifar10": Settings(
        "train[:45000]", ("train[45000:]", "test"), (100, 1000, 5000), 8, 128
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=sorted(SETTINGS), default="digits")
    parser.add_argument("--model", help="a trained model.keras of the data")
    parser.add_argument("--sizes", nargs="+", type=int, help="of the sets")
    parser.add_argument("--draws", type=int, default=50, help="of each way")
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
        model.save(options.output / "model.keras")
    parts = [load(options.data, split) for split in settings.observed]
    seen = observe(
        model, *(np.concatenate(both) for both in zip(*parts, strict=True))
    )
    print("Accuracy of each exit alone:", seen.exit_accuracies().round(4))
    rows = []
    for size in options.sizes or settings.sizes:
        rows += measure(model, seen, size, options.draws, options.seed)
        print_table(rows, size, len(seen), options.draws)
    print_verdict(rows, options.draws)
    figures = options.output / "figures.json"
    figures.write_text(json.dumps(rows, indent=1) + "\n")
    picture = options.output / "risk_control.png"
    draw(rows, picture)
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


def measure(model, seen, size, draws, seed):
    """Cost and risk of each method at each level, over draws of both ways."""
    right = seen.sample_metrics
    gaps = right[:, -1:] - right
    generator = np.random.default_rng(seed)
    everybody = np.arange(len(seen))
    orders = [generator.permutation(len(seen)) for _ in range(draws)]
    ways = {
        "split": [(order[:size], order[size:]) for order in orders],
        "replaced": [
            (generator.integers(len(seen), size=size), everybody)
            for _ in range(draws)
        ],
    }
    rows = []
    for method in METHODS:
        found = {
            way: np.array(
                [outcomes(model, seen, gaps, method, *pair) for pair in sets]
            )
            for way, sets in ways.items()
        }
        for k, level in enumerate(LEVELS):
            row = {"size": size, "method": method, "level": level}
            for way, values in found.items():
                costs, risks = values[:, k].T
                row[way] = {
                    "cost": float(costs.mean()),
                    "cost_spread": float(costs.std()),
                    "risk": float(risks.mean()),
                    "risk_spread": float(risks.std()),
                    "missed": float(np.mean(risks > level)),
                }
            rows.append(row)
    return rows


def outcomes(model, seen, gaps, method, chosen, others):
    """Cost and risk on other samples at each level, for one calibration set."""
    own, thresholds, rule = seen.take(chosen), None, method
    if method == "per exit":
        fifth = len(own) // 5
        thresholds = threshold_sequence(own.take(slice(fifth)))
        own, rule = own.take(slice(fifth, None)), "ucb"
    found = []
    for level in LEVELS:
        with warnings.catch_warnings():
            # That nobody leaves is a result here: all pay for all.
            warnings.filterwarnings("ignore", "Nobody leaves early")
            report = ee.calibrate(
                model,
                own,
                risk="performance_gap",
                epsilon=level,
                delta=DELTA,
                method=rule,
                thresholds=thresholds,
            )
        taken = seen.exit_index(report.threshold)[others]
        found.append(
            (seen.relative_costs[taken].mean(), gaps[others, taken].mean())
        )
    return found


def print_table(rows, size, n, draws):
    print(
        f"\n{size} calibration samples out of {n}, {draws} times: mean cost "
        "and its spread over the\nsplits; share of the splits, and of the "
        "draws with replacement, with a risk above\nthe level"
    )
    print(f"{'level':>10}" + "".join(f"{level:>21.1%}" for level in LEVELS))
    for method in METHODS:
        cells = [
            f"{row['split']['cost']:>7.3f}±{row['split']['cost_spread']:.3f}"
            f"{row['split']['missed']:>4.0%}{row['replaced']['missed']:>4.0%}"
            for row in rows
            if row["method"] == method and row["size"] == size
        ]
        print(f"{method:>10}" + "".join(f"{cell:>21}" for cell in cells))


def print_verdict(rows, draws):
    """Whether the promises are kept, but for the luck of the draws."""
    most = stats.binom.ppf(0.99, draws, DELTA) / draws
    print(f"\nWith replacement; with luck {DELTA:.0%} may be up to {most:.0%}:")
    for method in METHODS[1:]:
        mine = [row for row in rows if row["method"] == method]
        if method == "crc":
            errors = [
                (row["replaced"]["risk"] - row["level"])
                / max(row["replaced"]["risk_spread"] / draws**0.5, 1e-9)
                for row in mine
            ]
            print(
                f"{method:>10}: mean risk at most {max(errors):+.1f} standard "
                "errors above its level"
            )
        else:
            worst = max(row["replaced"]["missed"] for row in mine)
            print(f"{method:>10}: levels missed in at most {worst:.0%}")


def draw(rows, path):
    """Cost, and how often levels are missed, a column for each size."""
    sizes = sorted({row["size"] for row in rows})
    figure, axes = drawing.make_figure(
        2.2 + 3 * len(sizes), 6, heights=(3, 2), columns=len(sizes)
    )
    above, below = axes[: len(sizes)], axes[len(sizes) :]
    levels = 100 * np.array(LEVELS)
    colors = (drawing.MUTED, *drawing.SERIES)
    for size, top, bottom in zip(sizes, above, below, strict=True):
        for method, color in zip(METHODS, colors, strict=False):
            own = [
                row
                for row in rows
                if row["method"] == method and row["size"] == size
            ]
            line = "--" if method == "empirical" else "-"
            look = {"ls": line, "color": color, "marker": "o", "ms": 3.5}
            cost, spread, missed = (
                100 * np.array([row[way][name] for row in own])
                for way, name in (
                    ("split", "cost"),
                    ("split", "cost_spread"),
                    ("replaced", "missed"),
                )
            )
            top.plot(levels, cost, label=method, **look)
            top.fill_between(
                levels, cost - spread, cost + spread, color=color, alpha=0.1
            )
            bottom.plot(levels, missed, **look)
        bottom.axhline(100 * DELTA, color=drawing.INK, lw=1)
        top.set_title(f"{size} calibration samples", fontsize=10)
        bottom.set_xlabel("Risk that is allowed (%)")
        for one in (top, bottom):
            one.set_xscale("log")
            one.set_xticks(levels, [f"{level:g}" for level in levels])
            one.minorticks_off()
    promise = f"promised by ucb, ltt, per exit: {DELTA:.0%}"
    above[0].plot([], [], color=drawing.INK, lw=1, label=promise)
    above[0].set_ylabel("Mean relative cost (%)")
    below[0].set_ylabel("Sets above the level (%)")
    drawing.add_legend(figure, above[0], columns=3)
    drawing.finish(figure, path)


if __name__ == "__main__":
    main()
