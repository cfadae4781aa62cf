"""JEI-DNN beside thresholds, BoostNet and L2W-DEN, on one frozen network.

Nothing but exits learns (`_frozen.py`), so the network runs once over the data,
and each method learns from what the exits would read; costs are those of the
whole network with its exits.

    python benchmarks/jei.py                                  # MNIST
    python benchmarks/jei.py --data cifar10 --plain plain.keras

Gates decide for JEI-DNN, for each weight of the cost. All others leave by
their largest probability, at the cost that JEI-DNN came to on the calibration
images: by one threshold, or one for each exit so that geometric shares leave,
whichever is better there. One half of the calibration images is for all that,
the other for the conformal sets. Seeds that are done are kept.
"""

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from _frozen import Exits
from _shared import write_report

import keras_earlyexit as ee
from keras_earlyexit import calibration, drawing

#: Shares of conformal sets that may miss; the first is shown.
ALPHAS = (0.05, 0.01)
#: How the exits of the others are trained, and what pictures call it.
OTHERS = {
    "branchynet": "thresholds",
    "boosted": "BoostNet",
    "l2w": "L2W-DEN",
}
#: So few steps are too few for a network that learns every 100 of them.
OPTIONS = {"l2w": {"meta_every": 20, "meta_learning_rate": 1e-3}}
FIGURES = {
    "accuracy": "Accuracy (%)",
    "ece": "Calibration error (%)",
    "set_size": "Classes in a conformal set",
}
#: By data set: splits, and epochs of the network unless it is given.
SETTINGS = {
    "mnist": (("train[:20000]", "train[55000:]", "test"), 2),
    "cifar10": (("train[:45000]", "train[45000:]", "test"), 12),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=SETTINGS, default="mnist")
    parser.add_argument("--plain", help="a trained ResNet, as .keras")
    parser.add_argument(
        "--weights",
        nargs="*",
        type=float,
        default=(0.01, 0.03, 0.1, 0.3, 0.6, 1.0),
    )
    parser.add_argument("--epochs", type=int, default=10, help="of exits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=pathlib.Path, default="outputs/jei")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    settings = SETTINGS[options.data]
    exits = Exits(options.data, *settings, options.output, options.plain)
    path = options.output / "figures.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    for seed in range(options.seeds):
        if any(row["seed"] == seed for row in rows):
            continue
        rows += compared(exits, seed, options.epochs, options.weights)
        write_report(
            path,
            rows,
            data=options.data,
            epochs=options.epochs,
            costs=exits.costs,
        )
    print("costs of the exits", np.round(exits.costs, 3).tolist())
    show(rows)
    draw(rows, options.output / "jei.png")


def compared(exits, seed, epochs, weights):
    """Rows of one seed: JEI-DNN, and the others at the same cost."""
    others = {
        name: observed(exits, name, seed, epochs, **OPTIONS.get(name, {}))
        for name in OTHERS
    }
    rows = []
    for weight in weights:
        seen = observed(exits, "jei", seed, epochs, cost_weight=weight)
        same = [part.scored_by("max_probability") for part in seen]
        cost = seen[0].mean_cost(0.5)
        row = {"seed": seed, "cost_weight": weight}
        row["jei"] = figures(*seen[1:], 0.5)
        for name, parts in {"same exits": same, **others}.items():
            row[name] = figures(*parts[1:], best_at(parts[0], cost))
        rows.append(row)
    return rows


def observed(exits, objective, seed, epochs, **options):
    """Trains exits; what they answer in each of three parts of the data.

    The parts: one half of the calibration images, for the training's
    validation and for thresholds, the other, and the test images.
    """
    keras.utils.set_random_seed(seed)
    start = time.monotonic()
    model = exits.model()
    batch = 256
    steps = epochs * -(-len(exits.train[1]) // batch)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    model.compile(
        keras.optimizers.Adam(rate),
        ee.objectives.get(objective, **options),
        regime="disjoint",
    )
    choosing, covering = (
        tuple(part[k::2] for part in exits.calibration) for k in range(2)
    )
    model.fit(
        *exits.train,
        batch_size=batch,
        epochs=epochs,
        validation_data=choosing,
        verbose=0,
    )
    if objective == "jei":
        model.policy = "joint_gate"
    seen = [
        calibration.observe(model, *part, verbose=0)
        for part in (choosing, covering, exits.test)
    ]
    found = np.round(100 * seen[-1].exit_accuracies(), 1).tolist()
    seconds = f"{time.monotonic() - start:.0f} s"
    print(f"{seed}: {objective} {options} {found}, {seconds}", flush=True)
    return seen


def best_at(seen, cost):
    """The best thresholds whose mean cost is the one that is given."""
    shared, costs, _ = seen.curve(400)
    candidates = [float(shared[np.abs(costs - cost).argmin()])]
    if seen.relative_costs[0] < cost < seen.relative_costs[-1]:
        shares = calibration.exit_shares_for(cost, seen.relative_costs)
        candidates.append(calibration.thresholds_for_shares(seen, shares))
    return max(candidates, key=seen.accuracy)


def figures(covering, test, thresholds):
    """What routed answers to the test images are worth."""
    taken = test.exit_index(thresholds)
    answers = np.stack(test.predictions)[taken, np.arange(len(test))]
    confidence, right = calibration.top_label(answers, test.labels)
    found = {
        "cost": test.mean_cost(thresholds),
        "accuracy": float(right.mean()),
        "ece": calibration.expected_calibration_error(
            confidence, right, 15, "equal_mass"
        ),
        "shares": test.exit_shares(thresholds).tolist(),
    }
    for alpha in ALPHAS:
        quantiles = calibration.conformal_quantiles(
            np.stack(covering.predictions),
            covering.labels,
            covering.exit_index(thresholds),
            alpha,
        )
        # With too few samples no class can be left out.
        quantiles = np.minimum(quantiles, 1.0)
        sets = calibration.prediction_sets(answers, quantiles[taken])
        summary = calibration.prediction_set_summary(sets, test.labels)
        found[f"set_size_{alpha}"] = summary["mean_size"]
        found[f"miscoverage_{alpha}"] = 1 - summary["coverage"]
    return found


def means(rows, weight, method, name):
    """Mean and standard deviation over the seeds."""
    values = [row[method][name] for row in rows if row["cost_weight"] == weight]
    return float(np.mean(values)), float(np.std(values))


def show(rows):
    print(f"{'weight':>6} {'':<10} cost  accuracy  ECE  set size  miscoverage")
    names = ("cost", "accuracy", "ece", f"set_size_{ALPHAS[0]}")
    for weight in sorted({row["cost_weight"] for row in rows}):
        for method in ("jei", "same exits", *OTHERS):
            cost, accuracy, ece, size, missed = (
                means(rows, weight, method, name)
                for name in (*names, f"miscoverage_{ALPHAS[0]}")
            )
            print(
                f"{weight:>6} {method:<10} {cost[0]:.3f} "
                f"{accuracy[0]:.2%}±{accuracy[1]:.2%} {ece[0]:.2%} "
                f"{size[0]:.3f}±{size[1]:.3f} {missed[0]:.2%}"
            )


def draw(rows, path):
    """Accuracy, calibration error and sizes of sets against the cost."""
    figure, made = drawing.make_figure(11.4, 4.4, columns=3, shares=False)
    weights = sorted({row["cost_weight"] for row in rows})
    methods = {
        "jei": "JEI-DNN",
        "same exits": "thresholds, JEI-DNN's exits",
        **OTHERS,
    }
    for axes, (name, label) in zip(made, FIGURES.items(), strict=True):
        scale = 1 if name == "set_size" else 100
        name = f"{name}_{ALPHAS[0]}" if name == "set_size" else name
        for color, (method, title) in zip(
            drawing.SERIES, methods.items(), strict=False
        ):
            costs, values, spreads = np.array(
                sorted(
                    (
                        means(rows, weight, method, "cost")[0],
                        *means(rows, weight, method, name),
                    )
                    for weight in weights
                )
            ).T
            line = "o-" if method == "jei" else ".--"
            axes.errorbar(
                100 * costs,
                scale * values,
                scale * spreads,
                fmt=line,
                color=color,
                label=title,
            )
        axes.set_xlabel("Mean relative cost (%)")
        axes.set_ylabel(label)
    made[-1].set_ylabel(f"{FIGURES['set_size']}, alpha {ALPHAS[0]}")
    drawing.add_legend(figure, made[0], columns=3)
    drawing.finish(figure, path)


if __name__ == "__main__":
    main()
