"""Runs what docs/results.md shows, one command after another.

Each experiment is a command of this repository, and is run once: a mark in the
folder of results says that it has ended. Run again, it goes on with the first
that has not; those that can go on in the middle do.

    python benchmarks/results.py                # everything: many hours
    python benchmarks/results.py --list
    python benchmarks/results.py eenet8 mnist
"""

import argparse
import os
import pathlib
import shlex
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent

#: Exits at the early cut that are residual networks, and their thresholds.
RESIDUAL = (("residual", 0.9), ("residual2x2", 0.95))
#: Commands by experiment; {out} is its folder.
EXPERIMENTS = {
    "eenet8": [
        "benchmarks/eenets.py --train train[:10000] --epochs 3 "
        "--output {out}/figures.json --picture {out}/eenet8.png"
    ],
    "cost_losses": [
        "benchmarks/cost_losses.py --output {out}/rows.json",
        "benchmarks/cost_losses.py --data cifar10 --output {out}/cifar10.json",
    ],
    "mnist_front": [
        f"benchmarks/front.py mnist --seed {seed} --output {{out}}/{seed}"
        for seed in range(3)
    ],
    "cifar10_front": [
        "benchmarks/front.py cifar10 --output {out}",
        "benchmarks/front.py cifar10_taught --output {out}/taught",
        "benchmarks/front.py cifar10_late --output {out}/late",
    ],
    "tiny_imagenet": [
        f"benchmarks/front.py {recipe} --seed {seed} "
        f"--output {{out}}/{recipe}/{seed}"
        for recipe in ("resnet18", "mobilenetv2")
        for seed in range(3)
    ],
    "cifar10_deeper": ["benchmarks/front.py cifar10_deeper --output {out}"],
    "svhn": ["benchmarks/front.py svhn --output {out}"],
    "mnist": [
        f"examples/demo.py --data mnist --seed {seed} --output {{out}}/{seed}"
        for seed in range(3)
    ],
    "cifar10": [
        "examples/compare.py --data cifar10 --objectives branchynet "
        "--jei-costs 0.3 0.6 1.0 --output {out}"
    ],
    "static_models": ["benchmarks/static_models.py --output {out}/rows.json"],
    # It goes on with a network of "cifar10_front".
    "risk_control": [
        "examples/risk_control.py --data mnist --draws 100 "
        "--output {out}/mnist",
        "examples/risk_control.py --data cifar10 --draws 100 "
        "--model {out}/../cifar10_front/late/model.keras "
        "--output {out}/cifar10",
    ],
    "summarisation": ["benchmarks/summarisation.py --output {out}"],
    "jei": [
        "examples/compare.py --data mnist --objectives branchynet "
        "--jei-costs 0.1 --output {out}"
    ],
    "jei_frozen": [
        "benchmarks/jei.py --output {out}/mnist",
        "benchmarks/jei.py --data cifar10 --epochs 6 "
        "--weights 0.1 0.3 0.6 1 2 --output {out}/cifar10",
    ],
    "objectives": ["examples/compare.py --data mnist --output {out}"],
    "tuning": [
        "benchmarks/tuning.py --only accuracy --epochs 6 "
        "--train train[:20000] --blocks pool conv --directory {out} "
        "--output {out}/rows.json"
    ],
    "hierarchical": [
        *(
            f"benchmarks/hierarchical.py accuracy --way {way} {cut}"
            for cut in (
                "--folder {out}",
                "--layer block4_out --threshold 0.6 --folder {out}/block4",
                "--layer block4_out --block narrowing --threshold 0.8 "
                "--folder {out}/narrowing",
                *(
                    f"--layer block4_out --block {block} --threshold "
                    f'{threshold} --ways "all uint8+zstd" "all uint4+zstd" '
                    f'"non_exited uint4+zstd" --folder {{out}}/{block}'
                    for block, threshold in RESIDUAL
                ),
            )
            for way in ("undivided", "divided")
        ),
        "benchmarks/hierarchical.py speed --paced --plan --leave 0.5 "
        "--trained {out}/accuracy/divided --output {out}/speed.json",
        *(
            "benchmarks/hierarchical.py speed --paced --plan "
            f"--layer block4_out --block {block} --threshold {threshold} "
            f"--trained {{out}}/{block}/accuracy/divided "
            f"--output {{out}}/{block}/speed.json"
            for block, threshold in (("narrowing", 0.8), *RESIDUAL)
        ),
        *(
            "benchmarks/hierarchical.py speed --paced --plan --leave 0.5 "
            "--network resnet18 --layer block6_out --steps 79 --rates 1 "
            f"--output {{out}}/resnet18_{number}.json"
            for number in range(3)
        ),
    ],
    "peers": [
        "benchmarks/peers.py --torch-python {torch_python} --eenets {eenets} "
        "--output {out}/rows.json"
    ],
    "peers_accuracy": [
        "benchmarks/peers_accuracy.py --torch-python {torch_python} "
        "--eenets {eenets} --output {out}/rows.json"
    ],
    "whole_story": [
        f"examples/whole_story.py --data {data} --seed {seed} "
        f"--output {{out}}/{data}/{seed}"
        for data in ("digits", "mnist")
        for seed in range(3)
    ],
}
#: Experiments that need what cannot be installed with this library.
NEEDS = dict.fromkeys(("peers", "peers_accuracy"), ("torch_python", "eenets"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="EXPERIMENT")
    parser.add_argument("--list", action="store_true", help="what there is")
    parser.add_argument("--torch-python", help="a Python that has PyTorch")
    parser.add_argument("--eenets", help="a checkout of the authors' code")
    parser.add_argument(
        "--output", type=pathlib.Path, default="outputs/results"
    )
    options = parser.parse_args()
    unknown = set(options.names) - set(EXPERIMENTS)
    if unknown:
        parser.error(
            f"Expected names of {', '.join(EXPERIMENTS)}. Received: "
            f"{', '.join(sorted(unknown))}."
        )
    if options.list:
        for name, commands in EXPERIMENTS.items():
            state = "done" if mark(options, name).exists() else "to do"
            print(f"{name:<14} {state:<6} {commands[0]}")
        return
    failed = [
        name for name in options.names or EXPERIMENTS if not run(name, options)
    ]
    if failed:
        raise SystemExit(f"Not finished: {', '.join(failed)}.")


def mark(options, name):
    """The file that stands for an experiment that has ended."""
    return options.output / name / "done.txt"


def run(name, options):
    """Runs an experiment unless it has ended; whether it has now."""
    done = mark(options, name)
    if done.exists():
        print(f"==> {name}: done ({done.read_text().strip()})")
        return True
    values = vars(options)
    missing = [need for need in NEEDS.get(name, ()) if values[need] is None]
    if missing:
        flags = " and ".join(f"--{need.replace('_', '-')}" for need in missing)
        print(f"==> {name}: left out, it needs {flags}")
        return True
    done.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    for command in EXPERIMENTS[name]:
        words = [
            word.format(out=done.parent, **values)
            for word in shlex.split(command)
        ]
        print(f"==> {name}: python {shlex.join(words)}", flush=True)
        status = subprocess.run(
            [sys.executable, ROOT / words[0], *words[1:]],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        ).returncode
        if status:
            print(f"==> {name}: failed with exit status {status}")
            return False
    minutes = (time.monotonic() - start) / 60
    done.write_text(f"{minutes:.0f} minutes\n", encoding="utf-8")
    return True


if __name__ == "__main__":
    main()
