"""EENet-8 on MNIST: what the weight of the cost does, in both conventions.

The smallest network of the EENets authors, 4 filters, with their two exits
(`pool` blocks behind the first two blocks), trained from scratch with
`eenet_v2` for each weight of the cost, and the plain network alike. The policy
is theirs, `learned`: leave where the confidence is above 0.5. 50,000 images to
train on, 10,000 test images, and no choice is made on the latter: the last
epoch counts.

Costs are counted exactly (`macs`) and as in the authors' logs, in which the
three exits cost 0.08, 0.26 and 1.

    python benchmarks/eenets.py --output eenets.json

An interrupted run goes on with the same `--output`.
"""

import argparse
import json
import os
import pathlib
import statistics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from _shared import write_report

import keras_earlyexit as ee

WEIGHTS = (0.5, 0.7, 0.9, 1.0, 1.1, 1.3, 1.5)
#: What the exits cost in the authors' logs.
LOGGED_COSTS = np.array([0.08, 0.26, 1.0])
FILTERS, BATCH = 4, 32
#: Steps of a call: one alone takes about as long as its call.
STEPS = 50


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", nargs="*", type=float, default=WEIGHTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--train", default="train[:50000]")
    parser.add_argument("--output", type=pathlib.Path)
    options = parser.parse_args()
    train, test = (
        (ee.datasets.normalize("mnist", x), y)
        for x, y in (
            ee.datasets.load("mnist", split)
            for split in (options.train, "test")
        )
    )
    settings = {"epochs": options.epochs, "train": options.train}
    rows = kept(options.output, settings)
    done = {(row["cost_weight"], row["seed"]) for row in rows}
    # Seed by seed, so that an early end leaves a whole sweep.
    for seed in range(options.seeds):
        for weight in (None, *options.weights):
            if (weight, seed) in done:
                continue
            keras.utils.set_random_seed(seed)
            figures = trained(weight, options.epochs, train, test)
            rows.append({"cost_weight": weight, "seed": seed, **figures})
            print(json.dumps(rows[-1]), flush=True)
            write_report(options.output, rows, **settings)
    show(rows)


def kept(path, settings):
    """Rows of a run before, if it had the same settings."""
    if path is None or not path.exists():
        return []
    report = json.loads(path.read_text(encoding="utf-8"))
    found = {name: report[name] for name in settings}
    if found != settings:
        raise SystemExit(
            f"Expected {path} to be of a run with {settings}. Received: one "
            f"with {found}. Give another --output."
        )
    return report["rows"]


def trained(weight, epochs, train, test):
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
    model.compile(
        "adam",
        ee.objectives.get("eenet_v2", cost_weight=weight),
        steps_per_execution=STEPS,
    )
    model.fit(*train, batch_size=BATCH, epochs=epochs, verbose=0)
    result = model.predict_exits(x)
    return {
        "accuracy": right(result.predictions, y),
        "macs": float(result.mean_cost),
        "logged": float(LOGGED_COSTS[result.exit_index].mean()),
        "shares": [float(share) for share in result.exit_shares(3)],
    }


def right(predictions, y):
    return float(np.mean(predictions.argmax(axis=-1) == y))


def show(rows):
    """Means over the seeds, and the lowest and highest."""
    print("weight     accuracy              cost, macs   cost, logged   seeds")
    weights = sorted({row["cost_weight"] or 0 for row in rows})
    for weight in weights:
        mine = [row for row in rows if (row["cost_weight"] or 0) == weight]
        accuracy = [row["accuracy"] for row in mine]
        print(
            f"{weight or 'plain':<6}  {statistics.mean(accuracy):7.2%} "
            f"({min(accuracy):.2%} to {max(accuracy):.2%})  "
            + "  ".join(
                f"{statistics.mean(row[name] for row in mine):11.3f}"
                for name in ("macs", "logged")
            )
            + f"  {len(mine):6}"
        )


if __name__ == "__main__":
    main()
