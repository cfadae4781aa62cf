"""The losses of EENets, v0 to v4, in one stage and in two.

A plain ResNet-8 is trained once for each seed; each loss then trains two exits
(`plain` blocks) and the network on, for as many epochs, from those weights. In
two stages the first half of these epochs is `eenet_v0`, which knows no cost.
Reported are the answers with `max_probability` and the threshold that is best
within `--budget` on the calibration split, and those where a confidence that
was trained decides (`learned`, above 0.5), as in the authors' program. All
figures are of the test images.

    python benchmarks/cost_losses.py --output losses.json
    python benchmarks/cost_losses.py --data cifar10 --output losses_cifar10.json

An interrupted run goes on with the same `--output`.
"""

import argparse
import json
import os
import pathlib
import statistics
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from _shared import kept_rows, write_report

import keras_earlyexit as ee

VARIANTS = ("eenet_v0", "eenet_v1", "eenet_v2", "eenet_v3", "eenet_v4")
#: Other objectives, which know no confidence.
OTHERS = ("branchynet", "self_distillation")
BATCH = 64


class Data(NamedTuple):
    """What is learned.

    Args:
        splits: Of training, calibration and test.
        shape: Of an image.
        epochs: Passes over the training split, of each network.
    """

    splits: tuple
    shape: tuple
    epochs: int


DATA = {
    "mnist": Data(
        ("train[:10000]", "train[55000:]", "test"), (28, 28, 1), epochs=2
    ),
    "cifar10": Data(
        ("train[:20000]", "train[45000:]", "test"), (32, 32, 3), epochs=4
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=DATA, default="mnist")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--output", type=pathlib.Path)
    options = parser.parse_args()
    run = Run(options.data, options.budget)
    settings = {
        "data": options.data,
        "budget": options.budget,
        "epochs": run.epochs,
    }
    rows = kept_rows(options.output, settings)
    losses = run.losses()
    for seed in range(options.seeds):
        done = {row["loss"] for row in rows if row["seed"] == seed}
        left = [loss for loss in losses if loss not in done]
        weights = run.plain_weights(seed) if left else None
        for loss in left:
            row = run.trained(loss, seed, weights)
            rows.append(row)
            print(json.dumps(row), flush=True)
            write_report(options.output, rows, **settings)
    show(losses, rows)


class Run:
    """Trains networks on some data.

    Args:
        data: One of `DATA`.
        budget: The most that answers may cost, over the plain network.
    """

    def __init__(self, data, budget):
        splits, self._shape, self.epochs = DATA[data]
        self._budget = budget
        self._train, self._calibration, self._test = (
            (ee.datasets.normalize(data, x), y)
            for x, y in (ee.datasets.load(data, split) for split in splits)
        )

    def losses(self):
        """Objectives by what they are called in the table."""
        return {
            **{name: ee.objectives.get(name) for name in (*VARIANTS, *OTHERS)},
            **{
                f"{name}, two stages": ee.objectives.TwoStage(
                    name, epochs=self.epochs // 2
                )
                for name in VARIANTS[1:]
            },
        }

    def plain_weights(self, seed):
        """Weights of the plain network, trained."""
        plain = self._plain_network(seed)
        plain.compile(self._optimizer(), "sparse_categorical_crossentropy")
        self._fit(plain)
        return plain.get_weights()

    def trained(self, loss, seed, weights):
        """Trains with a loss; its figures on the test images."""
        plain = self._plain_network(seed)
        plain.set_weights(weights)
        objective = self.losses()[loss]
        policies = ["max_probability"]
        if objective.trains_confidence:
            policies.append("learned")
        model = ee.add_exits(plain, 2, block="plain", policy=policies[-1])
        model.compile(self._optimizer(), objective, regime="joint")
        self._fit(model)
        row = {"loss": loss, "seed": seed}
        for policy in policies:
            model.policy = policy
            seen = ee.calibration.observe(model, *self._test, verbose=0)
            threshold = 0.5
            if policy != "learned":
                held_out = ee.calibration.observe(
                    model, *self._calibration, verbose=0
                )
                thresholds, costs, _ = held_out.curve(400)
                threshold = float(thresholds[costs <= self._budget][-1])
            row[policy] = {
                "accuracy": seen.accuracy(threshold),
                "cost": seen.mean_cost(threshold),
                "shares": seen.exit_shares(threshold).tolist(),
            }
        row["exits"] = seen.exit_accuracies().tolist()
        row["costs"] = np.round(seen.relative_costs, 4).tolist()
        return row

    def _plain_network(self, seed):
        keras.utils.set_random_seed(seed)
        return ee.backbones.resnet_cifar(8, self._shape, 10)

    def _optimizer(self):
        steps = self.epochs * -(-len(self._train[1]) // BATCH)
        return keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(2e-3, steps)
        )

    def _fit(self, model):
        model.fit(*self._train, batch_size=BATCH, epochs=self.epochs, verbose=0)


def show(losses, rows):
    """Means over the seeds, with the lowest and the highest accuracy."""
    for loss in losses:
        mine = [row for row in rows if row["loss"] == loss]
        if not mine:
            continue
        exits = np.mean([row["exits"] for row in mine], axis=0)
        parts = [" / ".join(f"{100 * x:.2f}" for x in exits)]
        for policy in ("max_probability", "learned"):
            if policy not in mine[0]:
                continue
            accuracy = [row[policy]["accuracy"] for row in mine]
            cost = statistics.mean(row[policy]["cost"] for row in mine)
            parts.append(
                f"{statistics.mean(accuracy):.2%} ({min(accuracy):.2%} to "
                f"{max(accuracy):.2%}) at {cost:.3f}"
            )
        print(f"{loss:<22} | " + " | ".join(parts))


if __name__ == "__main__":
    main()
