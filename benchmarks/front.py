"""Accuracy against cost: networks with exits beside plain ones trained alike.

Both trunks see the same images as often, with the same optimizer; a recipe may
have them begin as one network. All exits of the one learn together with its
trunk (`zero_time_waste`, regime `joint`), and then, if the recipe says so, on
by themselves: an exit sees the answer before its own. In some recipes the
trained plain network teaches the one with exits: its answers are a part of the
labels. With `--ensemble` an exit afterwards answers as an ensemble with those
before it, whose few weights are trained last, on so many of the images. Policy
and thresholds for each budget are those that are best on the calibration split,
the figures those of the test split.

    python benchmarks/front.py mnist            # ResNet-20
    python benchmarks/front.py cifar10_taught   # the same
    python benchmarks/front.py resnet18         # Tiny-ImageNet, 20 classes
    python benchmarks/front.py mobilenetv2      # the same

A run that was stopped goes on after the last epoch that it has finished.
"""

import argparse
import dataclasses
import itertools
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from _recipes import RECIPES
from _shared import write_report

import keras_earlyexit as ee
from keras_earlyexit import fusing, snapshots

BASE = "sparse_categorical_crossentropy"
POLICIES = ("max_probability", "margin")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", choices=RECIPES, default="cifar10")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--train", help="another training split")
    parser.add_argument("--ensemble", type=int, default=0)
    parser.add_argument(
        "--budgets",
        nargs="*",
        type=float,
        default=(0.15, 0.2, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8),
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--minutes",
        type=float,
        default=float("inf"),
        help="stop after the epoch in which these are over",
    )
    parser.add_argument(
        "--part",
        choices=("plain", "exits"),
        help="only train this one, so that both can learn at the same time",
    )
    parser.add_argument("--output", type=pathlib.Path, default="outputs/front")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    run = Run(options)
    if options.part != "exits":
        plain = run.plain()
    if options.part != "plain":
        model = run.with_exits()
    if options.part is None:
        figures(options, run, plain, model)


class Run:
    """The data of a recipe, and its networks as far as they are trained."""

    def __init__(self, options):
        self.recipe = RECIPES[options.recipe]
        if options.epochs is not None:
            self.recipe = dataclasses.replace(
                self.recipe, epochs=options.epochs
            )
        self._options = options
        self._end = time.monotonic() + 60 * options.minutes
        train, *held_out = self.recipe.splits
        self.train = options.train or train
        self._images = ee.datasets.load(self.recipe.data, self.train)
        self.calibration, self.test = (
            (ee.datasets.normalize(self.recipe.data, x), y)
            for x, y in (
                ee.datasets.load(self.recipe.data, split) for split in held_out
            )
        )

    def plain(self):
        """The plain network, trained."""
        plain = self._begun()
        self._fit_plain(plain, "plain", self.recipe.before)
        return plain

    def _fit_plain(self, plain, name, first=0):
        # What trains is what trains inside a model with exits: each batch
        # normalisation as one operation.
        network = fusing.fused_network(plain)
        network.compile(self._optimizer(name), BASE, metrics=["accuracy"])
        network.optimizer.build(network.trainable_variables)
        self._train(network, name, first)

    def with_exits(self):
        """The one with exits, trained."""
        teacher = self.plain() if self.recipe.taught else None
        model = ee.add_exits(
            self._begun(),
            list(self.recipe.exits),
            block=self.recipe.block,
            policy="max_probability",
        )
        objective = ee.objectives.get("zero_time_waste", ensemble_epochs=0)
        model.compile(self._optimizer("exits"), objective, regime="joint")
        self._train(model, "exits", self.recipe.before, teacher)
        if self.recipe.after:
            model.compile(self._optimizer("after"), objective)
            first = self.recipe.before + self.recipe.epochs
            self._train(model, "after", first, teacher)
        if self._options.ensemble:
            objective = ee.objectives.get("zero_time_waste", ensemble_epochs=1)
            model.compile(keras.optimizers.Adam(0.02), objective)
            some = self._batches(self._options.seed, self._options.ensemble)
            model.fit(some, epochs=1, verbose=0, shuffle=False)
        return model

    def _begun(self):
        """The network that both go on from."""
        keras.utils.set_random_seed(self._options.seed)
        network = self.recipe.network()
        if self.recipe.before:
            self._fit_plain(network, "before")
        return network

    def _epochs(self, name):
        parts = {"before": self.recipe.before, "after": self.recipe.after}
        return parts.get(name, self.recipe.epochs)

    def _optimizer(self, name):
        steps = -(-len(self._images[1]) // self.recipe.batch)
        return self.recipe.optimizer(self._epochs(name) * steps, steps)

    def _batches(self, seed, images=None):
        return ee.datasets.pipeline(
            tuple(part[:images] for part in self._images),
            batch_size=self.recipe.batch,
            recipe=self.recipe.data,
            training=True,
            seed=seed,
        )

    def _taught(self, batches, teacher):
        share, classes = self.recipe.taught, teacher.output_shape[-1]
        for x, y in batches.as_numpy_iterator():
            labels = np.eye(classes, dtype="float32")[y]
            says = teacher.predict_on_batch(x)
            yield x, (1 - share) * labels + share * says

    def _train(self, network, name, first, teacher=None):
        """Trains from where a run before has stopped.

        `first` is the number of epochs before, so that each sees the images
        in an order of its own, the same for both networks. What a `teacher`
        says is a part of the labels.
        """
        path = self._options.output / f"{name}.state"
        epochs = self._epochs(name)
        settings = {
            "recipe": self._options.recipe,
            "epochs": epochs,
            "train": self.train,
            "seed": self._options.seed,
        }
        done = 0
        if path.exists():
            arrays, facts = snapshots.read(path)
            if facts["settings"] != settings:
                raise SystemExit(
                    f"Expected {path} to be of a run with {settings}. "
                    f"Received: one with {facts['settings']}. Give another "
                    "--output."
                )
            snapshots.restore(network, arrays)
            done = facts["epochs"]
        for epoch in range(done, epochs):
            start = time.process_time()
            batches = self._batches(1000 * self._options.seed + first + epoch)
            if teacher is not None:
                batches = self._taught(batches, teacher)
            network.fit(
                batches,
                initial_epoch=epoch,
                epochs=epoch + 1,
                verbose=2,
                shuffle=False,
            )
            facts = {"settings": settings, "epochs": epoch + 1}
            snapshots.write(path, snapshots.state_of(network), facts)
            seconds = time.process_time() - start
            print(f"{name}: epoch {epoch + 1}, {seconds:.0f} s of processor")
            if time.monotonic() > self._end:
                raise SystemExit("Time is up. Run again to go on.")


def figures(options, run, plain, model):
    """Prints, writes and draws what came out, on the test split."""
    plain.save(options.output / "plain.keras")
    model.save(options.output / "model.keras")
    x, y = run.test
    found = plain.predict(x, batch_size=256, verbose=0).argmax(axis=-1)
    accuracy = float(np.mean(found == y))
    held_out = ee.calibration.observe(model, *run.calibration, verbose=0)
    test = ee.calibration.observe(model, x, y, verbose=0)
    budgets = [x for x in options.budgets if x > model.relative_costs[0]]
    ways = list(ways_to_answer(held_out, budgets))
    rows = [at_budget(ways, test, budget) for budget in budgets]
    print(f"plain {accuracy:.2%}")
    print("exits", np.round(100 * test.exit_accuracies(), 2).tolist())
    print("costs", np.round(test.relative_costs, 3).tolist())
    for row in rows:
        row["below_plain"] = 100 * (accuracy - row["accuracy"])
        print(
            f"budget {row['budget']:.2f}: {row['accuracy']:.2%} at "
            f"{row['cost']:.3f}, {row['below_plain']:+.2f} points below plain "
            f"({row['policy']}, {row['thresholds']})"
        )
    write_report(
        options.output / "figures.json",
        rows,
        packages=("keras", keras.backend.backend()),
        recipe=options.recipe,
        train=run.train,
        epochs=run.recipe.epochs,
        seed=options.seed,
        plain_accuracy=accuracy,
        plain_macs=model.plain_macs,
        relative_costs=test.relative_costs.tolist(),
        exit_accuracies=test.exit_accuracies().tolist(),
        ensemble=options.ensemble,
    )
    ee.plots.accuracy_cost_curve(
        {"with exits": test},
        references={"plain network, trained alike": accuracy},
        path=options.output / "front.png",
    )


def ways_to_answer(seen, budgets):
    """Policies and thresholds with what they cost and how good they are.

    Tried are a threshold for all exits, one for each so that geometric
    shares leave, and all combinations of some quantiles of the scores.

    Yields:
        (cost, accuracy, policy, thresholds).
    """
    for policy in POLICIES:
        scored = seen.scored_by(policy)
        shared, _, _ = scored.curve(400)
        shares = (
            ee.calibration.exit_shares_for(budget, scored.relative_costs)
            for budget in budgets
        )
        quantiles = np.quantile(scored.scores, np.linspace(0, 1, 41), axis=0)
        for thresholds in (
            *shared.tolist(),
            *(ee.calibration.thresholds_for_shares(scored, x) for x in shares),
            *itertools.product(*quantiles.T),
        ):
            cost = scored.mean_cost(thresholds)
            yield cost, scored.accuracy(thresholds), policy, thresholds


def at_budget(ways, test, budget):
    """What the best of the ways within a budget does on other samples."""
    _, _, policy, thresholds = max(
        (way for way in ways if way[0] <= budget), key=lambda way: way[1]
    )
    test = test.scored_by(policy)
    return {
        "budget": budget,
        "policy": policy,
        "thresholds": np.round(thresholds, 4).tolist(),
        "accuracy": test.accuracy(thresholds),
        "cost": test.mean_cost(thresholds),
        "shares": test.exit_shares(thresholds).tolist(),
    }


if __name__ == "__main__":
    main()
