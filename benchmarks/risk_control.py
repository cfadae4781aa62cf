"""Upper risk bounds of many thresholds: this library's against MAPIE's.

    python benchmarks/risk_control.py --output risk_control.json

Both compute the Waudby-Smith-Ramdas bound of every column of the same arrays,
in one process and in turns, so that only the ratio is to be read. `error` is
the largest difference of this library's bounds from a plain bisection of the
formula; MAPIE rounds up to the grid of thresholds, which it also takes as the
grid of risks.

Then the share of bounds that are below the true mean, which may be 0.1 at
most: MAPIE adds the peaks of the wealth of both halves of the samples, and
is over it.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time

import numpy as np

from keras_earlyexit.calibration import control_risk, wsr_upper_bound

DELTA = 0.1
EPSILON = 0.05


def early_exit_losses(n, num_thresholds, kind, seed):
    """Losses (n, num_thresholds) of one exit that is often right."""
    generator = np.random.default_rng(seed)
    thresholds = np.linspace(0.0, 1.0, num_thresholds)
    score, luck = generator.random((2, n, 1))
    leaves = score > thresholds
    if kind == "zero_one":
        return leaves * (luck < 0.4 * (1 - score)), thresholds
    return leaves * luck ** (1 + 8 * score), thresholds


def bisected_bound(losses):
    """The formula by bisection over one column, without any shortcut."""
    n = len(losses)
    counts = np.arange(2, n + 2)
    mean = (0.5 + losses.cumsum()) / counts
    variance = (0.25 + ((losses - mean) ** 2).cumsum()) / counts
    variance = np.append(0.25, variance[:-1])
    bet = np.minimum(1, np.sqrt(-2 * np.log(DELTA) / (n * variance)))
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        wealth = np.log1p(-bet * (losses - middle)).cumsum().max()
        low, high = (low, middle) if wealth > -np.log(DELTA) else (middle, high)
    return high


def seconds(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def summary(values):
    return {
        "median_s": statistics.median(values),
        "lowest_s": min(values),
        "highest_s": max(values),
        "repeats": len(values),
    }


def measure(n, num_thresholds, kind, repeats, seed, mapie):
    losses, thresholds = early_exit_losses(n, num_thresholds, kind, seed)
    losses = losses.astype("float64")
    times = {"wsr_upper_bound": [], "control_risk": [], "mapie": []}
    for repeat in range(repeats + 1):
        elapsed, bounds = seconds(wsr_upper_bound, losses, DELTA)
        both = [("wsr_upper_bound", elapsed)]
        elapsed, _ = seconds(control_risk, losses, thresholds, EPSILON, DELTA)
        both.append(("control_risk", elapsed))
        if mapie:
            elapsed, _ = seconds(
                mapie, losses, thresholds, "rcps", "wsr", DELTA, 0.25
            )
            both.append(("mapie", elapsed))
        for name, elapsed in both if repeat else ():  # The first warms up.
            times[name].append(elapsed)
    row = {"n": n, "num_thresholds": num_thresholds, "losses": kind}
    row |= {name: summary(v) for name, v in times.items() if v}
    columns = range(0, num_thresholds, max(1, num_thresholds // 20))
    formula = [bisected_bound(losses[:, column]) for column in columns]
    row["error"] = float(np.abs(bounds[columns] - formula).max())
    if mapie:
        row["ratio"] = (
            row["mapie"]["median_s"] / row["wsr_upper_bound"]["median_s"]
        )
    return row


def misses(mean, n, draws, seed, mapie):
    """Share of bounds below the mean of n Bernoulli losses."""
    generator = np.random.default_rng(seed)
    grid = np.linspace(0.0, 1.0, 201)
    ours, theirs = [], []
    for _ in range(-(-draws // len(grid))):
        losses = generator.random((n, len(grid))) < mean
        losses = losses.astype("float64")
        ours.append(wsr_upper_bound(losses, DELTA) < mean)
        if mapie:
            upper = mapie(losses, grid, "rcps", "wsr", DELTA, 0.25)[1]
            theirs.append(upper < mean - 1e-9)
    row = {"n": n, "mean": mean, "draws": len(ours) * len(grid), "delta": DELTA}
    row["wsr_upper_bound"] = float(np.mean(ours))
    if mapie:
        row["mapie"] = float(np.mean(theirs))
    return row


def print_tables(rows, coverage):
    print(
        f"{'n x thresholds':>15} {'losses':>9} {'bounds':>9} {'decision':>9} "
        f"{'MAPIE':>9} {'ratio':>6} {'error':>8}"
    )
    for row in rows:
        size = f"{row['n']:,} x {row['num_thresholds']}"
        line = f"{size:>15} {row['losses']:>9}"
        for name in ("wsr_upper_bound", "control_risk", "mapie"):
            known = name in row
            time_ms = 1000 * row[name]["median_s"] if known else None
            line += f" {time_ms:>6.1f} ms" if known else f" {'':>9}"
        line += f" {row['ratio']:>6.1f}" if "ratio" in row else f" {'':>6}"
        print(f"{line} {row['error']:>8.0e}")
    print(f"\n{'n':>5} {'mean':>5} {'below the mean':>15} {'MAPIE':>7}")
    for row in coverage:
        line = f"{row['n']:>5} {row['mean']:>5} {row['wsr_upper_bound']:>15.3f}"
        print(f"{line} {row.get('mapie', float('nan')):>7.3f}")


def write_json(path, content):
    path = pathlib.Path(path)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, suffix=".tmp", delete=False
    ) as file:
        json.dump(content, file, indent=1)
    os.replace(file.name, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    try:
        import mapie
        from mapie.risk_control.methods import get_r_hat_plus
    except ImportError:
        print("mapie is not installed: no comparison", file=sys.stderr)
        get_r_hat_plus = None
    else:
        versions["mapie"] = mapie.__version__
    rows = []
    for n, num_thresholds, compare in ((3000, 101, True), (10_000, 200, False)):
        for kind in ("zero_one", "real"):
            rows.append(
                measure(
                    n,
                    num_thresholds,
                    kind,
                    arguments.repeats,
                    arguments.seed,
                    get_r_hat_plus if compare else None,
                )
            )
    coverage = [
        misses(mean, 100, 2000, arguments.seed, get_r_hat_plus)
        for mean in (0.1, 0.3)
    ]
    print_tables(rows, coverage)
    if arguments.output:
        machine = {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "num_cpus": os.cpu_count(),
        }
        write_json(
            arguments.output,
            {
                "benchmark": "risk_control",
                "machine": machine,
                "versions": versions,
                "seed": arguments.seed,
                "delta": DELTA,
                "epsilon": EPSILON,
                "rows": rows,
                "misses": coverage,
            },
        )


if __name__ == "__main__":
    main()
