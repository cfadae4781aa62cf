"""Policies and objectives on one backbone: accuracy at equal cost.

Trains a plain network once, then adds the same exits for every objective, and
compares them on test data. Thresholds are chosen on a calibration split:

    python examples/compare.py                   # digits, about a minute
    python examples/compare.py --data cifar10    # hours on two cores

Every objective starts from the trained network, with new exits. On CIFAR-10 the
network is trained with exits for its last epochs, so that its features serve
them, and stays frozen afterwards; the new exits see a part of the training
data, for time. Parts that are done are kept in the output folder, so a run that
was stopped goes on where it was.
"""

import argparse
import dataclasses
import json
import pathlib
import time

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

import keras_earlyexit as ee

OBJECTIVES = (
    "branchynet",
    "sdn",
    "pabee",
    "gradient_equilibrium",
    "self_distillation",
    "boosted",
    "zero_time_waste",
    "confidence_gated",
    "exit_scheduling",
    "l2w",
    "eenet_v2",
    "jei",
)
POLICIES = ("max_probability", "entropy", "margin", "patience", "learned")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained on a data set, and how."""

    splits: tuple
    depth: int
    backbone_epochs: int
    epochs: int
    exits: int
    batch_size: int
    block: str = "pool"
    jei_epochs: int = 8
    supervised_epochs: int = 0
    exit_images: int | None = None
    regime: str | None = None


SETTINGS = {
    "digits": Settings(("train", "calibration", "test"), 20, 12, 6, 4, 64),
    "mnist": Settings(
        ("train[:20000]", "train[55000:]", "test"), 8, 2, 2, 2, 128, "plain"
    ),
    "cifar10": Settings(
        ("train[:45000]", "train[45000:]", "test"),
        depth=20,
        backbone_epochs=12,
        epochs=8,
        exits=4,
        batch_size=128,
        block="conv",
        supervised_epochs=3,
        exit_images=10000,
        regime="disjoint",
    ),
}

# Too little to judge by, enough to see how it works.
QUICK = {
    **{"depth": 8, "backbone_epochs": 3, "supervised_epochs": 0},
    **{"epochs": 1, "jei_epochs": 2, "exits": 2},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=sorted(SETTINGS), default="digits")
    parser.add_argument(
        "--quick", action="store_true", help="a small network, few epochs"
    )
    parser.add_argument("--objectives", nargs="*", default=OBJECTIVES)
    parser.add_argument(
        "--jei-costs", nargs="*", type=float, default=(0.1, 0.3, 0.6, 1.0)
    )
    parser.add_argument(
        "--jei-weighting", choices=("code", "paper"), default="code"
    )
    parser.add_argument("--budgets", nargs="*", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default="compare")
    options = parser.parse_args()
    run = Run(options)
    run.objectives()
    run.policies()
    run.jei()


class Run:
    """One comparison: its data, its backbone, and what it has found."""

    def __init__(self, options):
        self.options = options
        self.settings = SETTINGS[options.data]
        if options.quick:
            self.settings = dataclasses.replace(self.settings, **QUICK)
        self.folder = options.output / options.data
        self.folder.mkdir(parents=True, exist_ok=True)
        self.console = Console()
        self.data = [
            ee.datasets.load(options.data, split)
            for split in self.settings.splits
        ]
        self.calibration, self.test = (
            (ee.datasets.normalize(options.data, x), y)
            for x, y in self.data[1:]
        )

    def batches(self, images=None):
        """Training data, augmented where that is usual."""
        return ee.datasets.pipeline(
            tuple(part[:images] for part in self.data[0]),
            batch_size=self.settings.batch_size,
            recipe=self.options.data,
            training=True,
            seed=self.options.seed,
        )

    def optimizer(self, epochs, images=None, rate=2e-3):
        images = images or len(self.data[0][1])
        steps = epochs * -(-images // self.settings.batch_size)
        return keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(rate, steps)
        )

    def backbone(self):
        """The plain network, trained once."""
        path = self.folder / "backbone.keras"
        if not path.exists():
            self.console.rule("The plain network")
            keras.utils.set_random_seed(self.options.seed)
            shape = self.test[0].shape[1:]
            plain = ee.backbones.resnet_cifar(self.settings.depth, shape, 10)
            epochs = self.settings.backbone_epochs
            plain.compile(
                self.optimizer(epochs),
                "sparse_categorical_crossentropy",
                metrics=["accuracy"],
            )
            plain.fit(self.batches(), epochs=epochs, verbose=2)
            self.supervise(plain)
            plain.save(path)
        return keras.models.load_model(path)

    def supervise(self, plain):
        """Trains the network on with exits, so that its features serve them."""
        epochs = self.settings.supervised_epochs
        if epochs:
            model = ee.add_exits(plain, self.settings.exits)
            model.compile(self.optimizer(epochs, rate=1e-3), "branchynet")
            model.fit(self.batches(), epochs=epochs, verbose=2)

    def trained(self, objective, label, epochs=None, **options):
        """A model with exits, trained with an objective, once."""
        path = self.folder / f"{label}.keras"
        if not path.exists():
            keras.utils.set_random_seed(self.options.seed)
            model = ee.add_exits(
                self.backbone(),
                self.settings.exits,
                block=self.settings.block,
            )
            epochs = epochs or self.settings.epochs
            images = self.settings.exit_images
            model.compile(
                self.optimizer(epochs, images),
                ee.objectives.get(objective, **options),
                regime=self.settings.regime,
            )
            start = time.monotonic()
            model.fit(
                self.batches(images),
                epochs=epochs,
                validation_data=self.calibration,
                verbose=0,
            )
            seconds = time.monotonic() - start
            self.console.print(f"Trained {label} in {seconds:.0f} s")
            model.save(path)
        return keras.models.load_model(path)

    def budgets(self, model):
        if self.options.budgets:
            return self.options.budgets
        costs = model.relative_costs
        return np.round(np.linspace(costs[0], costs[-1], 6)[1:-1], 2).tolist()

    def at_budgets(self, model, policy):
        """Test accuracy and cost with thresholds that fit each budget."""
        model.policy = policy
        calibration = ee.calibration.observe(model, *self.calibration)
        test = ee.calibration.observe(model, *self.test)
        found = []
        for budget in self.budgets(model):
            threshold = threshold_for(calibration, budget)
            found.append((test.mean_cost(threshold), test.accuracy(threshold)))
        return test, found

    def objectives(self):
        """Every objective, with the policy max_probability."""
        rows = {}
        for name in self.options.objectives:
            model = self.trained(name, name)
            test, found = self.at_budgets(model, "max_probability")
            rows[name] = {
                "exits": test.exit_accuracies().tolist(),
                "budgets": found,
            }
        self.show(
            "Objectives, policy max_probability", rows, self.budgets(model)
        )
        self.keep("objectives", rows)

    def policies(self):
        """Every policy, on the exits that were trained with eenet_v2."""
        rows = {}
        name = "eenet_v2" if "eenet_v2" in self.options.objectives else None
        name = name or self.options.objectives[0]
        model = self.trained(name, name)
        for policy in POLICIES:
            test, found = self.at_budgets(model, policy)
            rows[policy] = {"budgets": found}
        self.show(f"Policies, exits of {name}", rows, self.budgets(model))
        self.keep("policies", rows)

    def jei(self):
        """JEI-DNN against the largest probability of the same exits."""
        rows = []
        for weight in self.options.jei_costs:
            model = self.trained(
                "jei",
                f"jei_{self.options.jei_weighting}_{weight}",
                epochs=self.settings.jei_epochs,
                cost_weight=weight,
                weighting=self.options.jei_weighting,
            )
            model.policy = "joint_gate"
            test = ee.calibration.observe(model, *self.test)
            gates = ee.calibration.observe(model, *self.calibration)
            cost = gates.mean_cost(0.5)
            found, ((plain_cost, plain),) = self.at_cost(model, cost)
            rows.append(
                {
                    "cost_weight": weight,
                    "cost": test.mean_cost(0.5),
                    "accuracy": test.accuracy(0.5),
                    "plain_cost": plain_cost,
                    "plain_accuracy": plain,
                    "exits": found.exit_accuracies().tolist(),
                    "shares": test.exit_shares(0.5).tolist(),
                }
            )
        table = Table(title="JEI-DNN against max_probability, same exits")
        for column in ("cost weight", "cost", "accuracy", "cost", "accuracy"):
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(
                f"{row['cost_weight']:g}",
                f"{row['cost']:.3f}",
                f"{row['accuracy']:.2%}",
                f"{row['plain_cost']:.3f}",
                f"{row['plain_accuracy']:.2%}",
            )
        self.console.print(table)
        self.keep("jei", rows)

    def at_cost(self, model, cost):
        budgets, self.options.budgets = self.options.budgets, [cost]
        try:
            return self.at_budgets(model, "max_probability")
        finally:
            self.options.budgets = budgets

    def show(self, title, rows, budgets):
        table = Table(title=title)
        table.add_column("")
        first = next(iter(rows.values()))
        for i in range(len(first.get("exits", ()))):
            table.add_column(f"exit {i}", justify="right")
        for budget in budgets:
            table.add_column(f"cost {budget:g}", justify="right")
        for name, row in rows.items():
            table.add_row(
                name,
                *(f"{accuracy:.2%}" for accuracy in row.get("exits", ())),
                *(f"{acc:.2%}\n({cost:.3f})" for cost, acc in row["budgets"]),
            )
        self.console.print(table)

    def keep(self, name, rows):
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(rows, indent=2) + "\n")
        self.console.print(f"Wrote {path}")


def threshold_for(seen, budget):
    """The smallest threshold whose mean cost is within a budget.

    Cost falls with the threshold: the smallest is the cheapest. Of those
    within the budget the most careful one is wanted, the largest.
    """
    thresholds, costs, _ = seen.curve(400)
    fits = np.flatnonzero(costs <= budget + 1e-9)
    return float(thresholds[fits[-1]]) if len(fits) else -np.inf


if __name__ == "__main__":
    main()
