"""The summarisation experiment of "Fast yet Safe", with this library's rules.

Its authors let a T5-large leave its decoder early (CALM) on 2,000 articles of
CNN/DailyMail, and published what ROUGE-L each article loses at each of 100
thresholds. `control_risk` chooses among them, as their program does: 50 times
n articles for calibration and the others for the test, with their seed.

    python benchmarks/summarisation.py --output outputs/summarisation

What is left over says too much about a guarantee: calibration and test are two
parts of the same articles, so that luck in the one is bad luck in the other.
So the second table takes the 2,000 for all articles that there are, draws
calibration sets from them with replacement, and knows the true risk.
"""

import argparse
import json
import pathlib

import numpy as np
from _shared import write_report
from scipy import stats

from keras_earlyexit import drawing
from keras_earlyexit.calibration import control_risk

DATA = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data"
SIZES = (100, 1000)
DELTA = 0.1
#: Rules of this library, and what the file of the authors' figures calls them.
RULES = {
    "empirical": "empirical",
    "crc": "crc",
    "ucb": "ucb",
    "ltt": "ltt_authors_code",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument(
        "--output", type=pathlib.Path, default="outputs/summarisation"
    )
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    golden = json.loads((DATA / "risk_control.json").read_text())["cnndm"]
    data = Articles()
    rows = []
    for n in SIZES:
        splits = data.splits(n, options.trials)
        draws = data.draws(n, options.draws, options.seed)
        for rule, theirs in RULES.items():
            for j, epsilon in enumerate(golden["epsilon"]):
                known = golden[f"n_{n}"][theirs]
                rows.append(
                    {
                        "n": n,
                        "rule": rule,
                        "epsilon": epsilon,
                        "split": data.outcome(splits, rule, epsilon),
                        "authors": {name: known[name][j] for name in known},
                        "population": data.outcome(draws, rule, epsilon),
                    }
                )
    full = float(data.layers[0])
    print(f"Layers without early exits: {full:.2f}")
    show(rows, f"{options.trials} splits", "split", "authors")
    show(rows, f"{options.draws} draws with replacement", "population")
    within(rows, options.draws)
    write_report(
        options.output / "figures.json",
        rows,
        ("numpy", "scipy"),
        trials=options.trials,
        draws=options.draws,
        seed=options.seed,
        delta=DELTA,
        full_model_layers=full,
    )
    draw(rows, full, options.output / "summarisation.png")
    print(f"Wrote figures.json and summarisation.png to {options.output}")


class Articles:
    """What each article loses at each threshold, the most careful first."""

    def __init__(self):
        with np.load(DATA / "calm_cnndm.npz", allow_pickle=False) as data:
            self.thresholds = data["thresholds"]
            self.layers = data["mean_exit_layer"].astype("float64")
            rouge = data["relative_rouge"].astype("float64")
        self.losses = (rouge[0] - rouge).T

    def splits(self, n, trials):
        """Pairs of rows to calibrate with and their complements' risks."""
        # The authors' generator: their very splits.
        random = np.random.RandomState(42)
        for_all = np.arange(len(self.losses))
        found = []
        for _ in range(trials):
            chosen = random.choice(for_all, n, replace=False)
            rest = np.setdiff1d(for_all, chosen)
            found.append((chosen, self.losses[rest].mean(axis=0)))
        return found

    def draws(self, n, count, seed):
        """Pairs of rows drawn with replacement and the risks of all rows."""
        generator = np.random.default_rng(seed)
        risks = self.losses.mean(axis=0)
        return [
            (generator.integers(len(self.losses), size=n), risks)
            for _ in range(count)
        ]

    def outcome(self, trials, rule, epsilon):
        """Means over trials, and the share of those with too much risk."""
        layers, found = [], []
        for rows, risks in trials:
            threshold = control_risk(
                self.losses[rows], self.thresholds, epsilon, DELTA, rule
            )
            # Nobody leaves: the whole model, which is the first column.
            index = max(np.searchsorted(-self.thresholds, -threshold), 0)
            layers.append(self.layers[index])
            found.append(risks[index])
        return {
            "mean_exit_layer": float(np.mean(layers)),
            "std": float(np.std(layers)),
            "test_risk": float(np.mean(found)),
            "violations": float(np.mean(np.array(found) > epsilon)),
        }


def show(rows, title, *sources):
    """Exit layer, risk and share with too much of it, source by source."""
    levels = sorted({row["epsilon"] for row in rows})
    for n in SIZES:
        print(f"\n{title}, n = {n}: exit layer, risk, share above the level")
        print(f"{'':>20}" + "".join(f"{level:>20.0%}" for level in levels))
        for rule in RULES:
            for source in sources:
                name = f"{rule} {source if source == 'authors' else ''}"
                cells = [
                    "{mean_exit_layer:>7.2f} {test_risk:>6.2%} "
                    "{violations:>4.0%}".format(**row[source])
                    for row in rows
                    if row["n"] == n and row["rule"] == rule
                ]
                print(f"{name:>20}" + "".join(f"{c:>20}" for c in cells))


def within(rows, draws):
    """Says whether the promises are kept, but for the luck of the draws."""
    most = stats.binom.ppf(0.99, draws, DELTA) / draws
    print()
    for rule in ("ucb", "ltt"):
        worst = max(
            row["population"]["violations"]
            for row in rows
            if row["rule"] == rule
        )
        verdict = "kept" if worst <= most else "BROKEN"
        print(
            f"{rule}: at most {worst:.1%} of the draws above a level, "
            f"promised {DELTA:.0%} (with luck up to {most:.1%}): {verdict}"
        )
    worst = max(
        row["population"]["test_risk"] / row["epsilon"]
        for row in rows
        if row["rule"] == "crc"
    )
    verdict = "kept" if worst <= 1 else "BROKEN"
    print(f"crc: mean risk at most {worst:.0%} of the level: {verdict}")


def draw(rows, full, path):
    """Exit layers and broken promises over the level, rule by rule."""
    figure, (left, right) = drawing.make_figure(
        10.4, 4.8, columns=2, shares=False
    )
    for color, rule in zip(drawing.SERIES, RULES, strict=False):
        for n, line in zip(SIZES, ("--", "-"), strict=True):
            mine = [r for r in rows if r["n"] == n and r["rule"] == rule]
            levels = [100 * row["epsilon"] for row in mine]
            left.plot(
                levels,
                [row["split"]["mean_exit_layer"] for row in mine],
                line,
                color=color,
                label=f"{rule}, {n} articles",
            )
            left.plot(
                levels,
                [row["authors"]["mean_exit_layer"] for row in mine],
                "x",
                color=color,
                ms=5,
            )
            right.plot(
                levels,
                [100 * row["population"]["violations"] for row in mine],
                line,
                color=color,
            )
    left.plot([], [], "x", color=drawing.INK, ms=5, label="authors' program")
    left.axhline(full, color=drawing.MUTED, lw=1)
    left.set_ylabel("Mean exit layer")
    right.axhline(100 * DELTA, color=drawing.MUTED, lw=1)
    right.annotate(
        "promised by\nucb and ltt",
        (15, 100 * DELTA),
        (0, 4),
        textcoords="offset points",
        ha="right",
        color=drawing.MUTED,
    )
    right.set_ylabel("Calibration sets above the level (%)")
    for axes in (left, right):
        axes.set_xlabel("ROUGE-L that may be lost (% of the whole model's)")
    drawing.add_legend(figure, left, columns=3)
    drawing.finish(figure, path)


if __name__ == "__main__":
    main()
