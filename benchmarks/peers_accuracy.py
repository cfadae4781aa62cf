"""Accuracy at equal cost, memory and length of a program, against the peers.

Each of the programs in `_peers/` trains the same ResNet-20 with exits behind
its third and sixth block on 10,000 images of MNIST: batches of 64, two
epochs, Adam, a rate that falls from 0.001 along a cosine, from epoch to epoch.
Then it chooses its thresholds on 5,000 other images, in its own way, and
answers the test images. Costs are the multiply-adds of convolutions and dense
layers that really ran, exit blocks included, over those of the plain network.

This library is asked for the costs that the others came to, so that each point
of theirs stands beside one of its own at the same cost.

    python benchmarks/peers_accuracy.py --torch-python torch/bin/python \
        --eenets eenets.pytorch --output peers_accuracy.json

An interrupted run goes on with the same `--output`.
"""

import argparse
import ast
import functools
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import tokenize

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from _shared import write_report

import keras_earlyexit as ee

HERE = pathlib.Path(__file__).resolve().parent / "_peers"
SPLITS = {
    "train": "train[:10000]",
    "held_out": "train[50000:55000]",
    "test": "test",
}
#: This library's come last: they are asked for the others' costs.
OTHERS = ("with_eenets", "keras_eenet_v2", "with_earlyon")
OURS = "keras_branchynet"
BUDGETS = (0.5, 0.7)
MEMORY = ("train", "1", "256")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", help="a Python that has earlyon")
    parser.add_argument("--eenets", help="a checkout of the authors' code")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument(
        "--minutes",
        type=float,
        default=float("inf"),
        help="stop after the program in which these are over",
    )
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    rows = []
    if options.output is not None and options.output.exists():
        rows = json.loads(options.output.read_text(encoding="utf-8"))["rows"]
    done = {(row["program"], row["seed"], row["memory"]) for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        data = pathlib.Path(folder) / "mnist.npz"
        np.savez(data, **images())
        for point in points(options):
            if point in done:
                continue
            if time.monotonic() > end:
                raise SystemExit("Time is up. Run again to go on.")
            rows += run(*point, data, options, rows)
            print(json.dumps(rows[-1]), flush=True)
            write_report(options.output, rows, budgets=BUDGETS)
    show(rows)


def points(options):
    """What is to be run: program, seed, and whose memory is looked at."""
    needs = {
        "with_eenets": options.torch_python and options.eenets,
        "with_earlyon": options.torch_python,
    }
    programs = [name for name in (*OTHERS, OURS) if needs.get(name, True)]
    return [
        *((name, 0, what) for name in programs for what in MEMORY),
        *((name, i, None) for i in range(options.seeds) for name in programs),
    ]


def images():
    found = {}
    for name, split in SPLITS.items():
        x, y = ee.datasets.load("mnist", split)
        x = ee.datasets.normalize("mnist", x)
        found |= {f"x_{name}": x.astype("float32"), f"y_{name}": y}
    return found


@functools.cache
def plain_and_first():
    """Multiply-adds of the plain network, and the least that a cost can be."""
    plain = ee.backbones.resnet_cifar(20, (28, 28, 1), 10)
    model = ee.add_exits(plain, ["block3_out", "block6_out"])
    return model.plain_macs, float(model.relative_costs[0])


def run(program, seed, memory, data, options, rows):
    """Runs a program in a process of its own; its rows."""
    ours = program.startswith("keras")
    command = [sys.executable if ours else options.torch_python]
    command += [HERE / "run.py", program, data, "--seed", seed]
    command += ["--path", options.eenets] if program == "with_eenets" else []
    plain, first = plain_and_first()
    if memory:
        command += ["--memory", memory]
    elif program == OURS:
        costs = [
            row["cost"]
            for row in rows
            if row["seed"] == seed and row["memory"] is None
        ]
        command += ["--budgets", *(max(cost, first) for cost in costs)]
    else:
        given = () if program == "with_earlyon" else (0,)
        command += ["--budgets", *given, *BUDGETS]
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    facts = {"program": program, "seed": seed, "memory": memory}
    if memory:
        return [{**facts, **found}]
    return [
        {
            **facts,
            "training_seconds": found["training_seconds"],
            "cost": row.pop("macs") / plain,
            **row,
        }
        for row in found["rows"]
    ]


def show(rows):
    """Each point of the others with this library's at its cost; the rest."""
    trained = [row for row in rows if row["memory"] is None]
    ours = [row for row in trained if row["program"] == OURS]
    theirs = [row for row in trained if row["program"] != OURS]
    # A seed's rows of this library are in the order of the others' costs.
    beside = list(zip(theirs_by_seed(theirs), ours, strict=True))
    points = sorted({(row["program"], row["budget"] or 0) for row in theirs})
    print(f"{'program':<16} {'budget':<6} {'cost':<7} accuracy, and here")
    for point in points:
        mine = [
            pair
            for pair in beside
            if (pair[0]["program"], pair[0]["budget"] or 0) == point
        ]
        cost = statistics.mean(row["cost"] for row, _ in mine)
        print(
            f"{point[0]:<16} {point[1] or '':<6} {cost:.3f}  ",
            spread([row["accuracy"] for row, _ in mine]),
            spread([row["accuracy"] for _, row in mine]),
            f"at {statistics.mean(row['cost'] for _, row in mine):.3f}",
        )
    for program in (*OTHERS, OURS):
        megabytes = [
            f"{row['megabytes']:.0f}"
            for row in rows
            if row["program"] == program and row["memory"]
        ]
        print(
            f"{program:<16} {lines(HERE / f'{program}.py')} lines, MB "
            f"training, one image, 256: {', '.join(megabytes)}"
        )


def theirs_by_seed(rows):
    """In the order in which this library's program is asked for costs."""
    return sorted(rows, key=lambda row: row["seed"])


def spread(values):
    mean, low, high = statistics.mean(values), min(values), max(values)
    return f"{mean:.2%} ({low:.2%} to {high:.2%})"


def lines(path):
    """How many lines have code on them: no comments, no docstrings."""
    text = path.read_text(encoding="utf-8")
    strings = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    empty = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT)
    empty += (tokenize.DEDENT, tokenize.ENDMARKER)
    found = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in empty
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(found - strings)


if __name__ == "__main__":
    main()
