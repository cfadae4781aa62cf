"""EENet-8 on MNIST: what the weight of the cost does, in both conventions.

The smallest network of the EENets authors, 4 filters, with their two exits
(`pool` blocks behind the first two blocks), trained from scratch with
`eenet_v2` for each weight of the cost, and the plain network alike. The policy
is theirs, `learned`: leave where the confidence is above 0.5. No choice is made
on the test images: the last epoch counts.

What an exit costs is part of the loss. Trained with, and reported in, are
exact costs (`macs`: 0.42, 0.71 and 1) and those of the authors' logs
(`logged`: 0.08, 0.26 and 1), which are no ratio of multiply-adds.

    python benchmarks/eenets.py --output eenets.json --picture eenets.png

An interrupted run goes on with the same `--output`.
"""

import argparse
import json
import os
import pathlib
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from _shared import kept_rows, write_report

import keras_earlyexit as ee
from keras_earlyexit import drawing

CONVENTIONS = ("logged", "macs")
#: The exits save less by `macs`, so more weight is needed to use them.
WEIGHTS = {
    "logged": (0.5, 0.9, 1.1, 1.3, 1.5),
    "macs": (0.5, 1.0, 2.0, 4.0),
}
LOGGED_COSTS = (0.08, 0.26, 1.0)
FILTERS, BATCH = 4, 32
#: Steps of a call: one alone takes about as long as its call.
STEPS = 50


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--train", default="train[:50000]")
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--picture", type=pathlib.Path)
    parser.add_argument(
        "--minutes",
        type=float,
        default=float("inf"),
        help="stop after the network in which these are over",
    )
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    train, test = (
        (ee.datasets.normalize("mnist", x), y)
        for x, y in (
            ee.datasets.load("mnist", split)
            for split in (options.train, "test")
        )
    )
    settings = {"epochs": options.epochs, "train": options.train}
    rows = kept_rows(options.output, settings)
    done = {tuple(row[name] for name in KEY) for row in rows}
    # Seed by seed, so that an early end leaves a whole sweep.
    for point in points(options.seeds):
        if point in done:
            continue
        if time.monotonic() > end:
            raise SystemExit("Time is up. Run again to go on.")
        convention, weight, seed = point
        keras.utils.set_random_seed(seed)
        figures = trained(convention, weight, options.epochs, train, test)
        rows.append({**dict(zip(KEY, point, strict=True)), **figures})
        print(json.dumps(rows[-1]), flush=True)
        write_report(options.output, rows, **settings)
    show(rows)
    if options.picture is not None:
        draw(rows, options.picture)


#: What tells one row from another.
KEY = ("convention", "cost_weight", "seed")


def points(seeds):
    """What is to be trained; the plain network has neither of the two."""
    return [
        point
        for seed in range(seeds)
        for point in (
            (None, None, seed),
            *(
                (convention, weight, seed)
                for convention in CONVENTIONS
                for weight in WEIGHTS[convention]
            ),
        )
    ]


def trained(convention, weight, epochs, train, test):
    """Trains one network; its figures on the test images."""
    x, y = test
    plain = ee.backbones.eenet8(FILTERS, (28, 28, 1), 10)
    if weight is None:
        plain.compile(
            "adam",
            "sparse_categorical_crossentropy",
            steps_per_execution=STEPS,
        )
        plain.fit(*train, batch_size=BATCH, epochs=epochs, verbose=0)
        found = plain.predict(x, batch_size=512, verbose=0)
        return {"accuracy": right(found, y), "macs": 1.0, "logged": 1.0}
    model = ee.add_exits(plain, ["block1_out", "block2_out"], block="pool")
    costs = {
        "macs": model.relative_costs,
        "logged": np.array(LOGGED_COSTS),
    }
    if convention == "logged":
        # As if measured: that way a model takes any costs.
        model.use_cost(
            ee.cost.MeasuredCost("milliseconds", 1, LOGGED_COSTS, 1.0)
        )
    model.compile(
        "adam",
        ee.objectives.get("eenet_v2", cost_weight=weight),
        steps_per_execution=STEPS,
    )
    model.fit(*train, batch_size=BATCH, epochs=epochs, verbose=0)
    result = model.predict_exits(x)
    return {
        "accuracy": right(result.predictions, y),
        **{
            name: float(costs[name][result.exit_index].mean())
            for name in CONVENTIONS
        },
        "shares": [float(share) for share in result.exit_shares(3)],
    }


def right(predictions, y):
    return float(np.mean(predictions.argmax(axis=-1) == y))


def means(rows):
    """Rows with equal training, over their seeds: (convention, weight, dict).

    Each figure is a triple: mean, lowest and highest.
    """
    found = []
    for point in sorted(
        {(row["convention"] or "", row["cost_weight"] or 0) for row in rows}
    ):
        mine = [
            row
            for row in rows
            if ((row["convention"] or ""), row["cost_weight"] or 0) == point
        ]
        figures = {}
        for name in ("accuracy", *CONVENTIONS):
            values = [row[name] for row in mine]
            figures[name] = statistics.mean(values), min(values), max(values)
        found.append((*point, len(mine), figures))
    return found


def show(rows):
    """Means over the seeds, and the lowest and highest."""
    print(
        f"{'trained by':<10} {'weight':<6} {'accuracy':<26} "
        f"{'cost, macs':<22} {'cost, logged':<22} seeds"
    )
    for convention, weight, seeds, figures in means(rows):
        accuracy, low, high = figures["accuracy"]
        costs = [
            f"{mean:.3f} ({least:.3f} to {most:.3f})"
            for mean, least, most in (figures["macs"], figures["logged"])
        ]
        print(
            f"{convention or 'plain':<10} {weight or '':<6} "
            f"{accuracy:.2%} ({low:.2%} to {high:.2%})  "
            f"{costs[0]:<22} {costs[1]:<22} {seeds}"
        )


def draw(rows, path):
    """Accuracy against cost, a line for each convention, weights as labels."""
    figure, axes = drawing.make_figure(6.4, 4.8)
    found = means(rows)
    for color, convention in zip(drawing.SERIES, CONVENTIONS, strict=False):
        mine = [part for part in found if part[0] == convention]
        costs = [100 * part[3][convention][0] for part in mine]
        accuracies = [100 * part[3]["accuracy"][0] for part in mine]
        axes.plot(
            costs,
            accuracies,
            "o-",
            color=color,
            label=f"trained and counted by `{convention}`",
        )
        for part, cost, accuracy in zip(mine, costs, accuracies, strict=True):
            _, low, high = part[3]["accuracy"]
            axes.vlines(cost, 100 * low, 100 * high, color, alpha=0.4)
            axes.annotate(
                f"{part[1]:g}",
                (cost, accuracy),
                (4, -11),
                textcoords="offset points",
                color=color,
                fontsize=8,
            )
    for _, weight, _, figures in found:
        if not weight:
            plain = 100 * figures["accuracy"][0]
            axes.plot(100, plain, "*", ms=14, color=drawing.INK, label="plain")
    axes.set_xlabel("Mean relative cost (% of the plain network)")
    axes.set_ylabel("Accuracy (%)")
    axes.margins(0.08)
    drawing.add_legend(figure, axes)
    drawing.finish(figure, path)


if __name__ == "__main__":
    main()
