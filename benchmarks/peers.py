"""Against the peers on PyTorch, on one architecture, all in turn.

ResNet-20 for 32x32 images: the EENets authors' code with two early exits (a
checkout of it, given by `--eenets`), earlyon with its three, and this library
with two, as a model and as a LiteRT bundle. The peers run in an environment of
their own with PyTorch (and earlyon), given by its Python:

    python benchmarks/peers.py --torch-python torch/bin/python \
        --eenets eenets.pytorch

One image that leaves at the first exit, one that goes to the end, and one
training step of 128 images, with TensorFlow's own kernels and with oneDNN's.
`--jax` adds the training step on JAX.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from _shared import in_turn, ratio, write_report

import keras_earlyexit as ee

BATCH = 128
_SETTLE_S = 0.25
_BURST = 40
HERE = pathlib.Path(__file__).resolve().parent
EVERYBODY, NOBODY = (-np.inf, -np.inf), (np.inf, np.inf)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", help="a Python that has PyTorch")
    parser.add_argument("--eenets", help="a checkout of the authors' code")
    parser.add_argument("--jax", action="store_true")
    parser.add_argument("--runs", type=int, default=10, help="rounds")
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    if options.child:
        answer_on_demand({options.child: training_step()})
        return
    children = []
    if options.torch_python:
        command = [options.torch_python, HERE / "_peers_torch.py"]
        if options.eenets:
            command += ["--eenets", options.eenets]
        children.append(Child(command))
    child = [sys.executable, __file__, "--child"]
    children.append(Child([*child, "onednn_step"], TF_ENABLE_ONEDNN_OPTS="1"))
    if options.jax:
        children.append(Child([*child, "jax_step"], KERAS_BACKEND="jax"))
    theirs = {name: child for child in children for name in child.cases}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        mine = answers(pathlib.Path(folder) / "bundle")
        for part in ("exit_0", "final"):
            rows += compare(part, mine, theirs, options.runs, _BURST)
    steps = {
        "model_step": training_step(),
        "xla_step": training_step(jit_compile=True),
    }
    rows += compare("step", steps, theirs, max(options.runs // 2, 3), 3)
    for child in children:
        child.close()
    facts = {key: child.facts for key, child in enumerate(children)}
    write_report(options.output, rows, runs=options.runs, children=facts)


def compare(part, mine, theirs, rounds, burst):
    """Times all cases of one part in turn; prints and returns the rows.

    In every round each case is called in a row, so that it is measured warm,
    and what counts is the median of that row.
    """
    found = {name: [] for name in (*mine, *theirs) if name.endswith(part)}
    for _ in range(rounds):
        for name, seconds in found.items():
            if name in theirs:
                seconds.append(theirs[name].seconds(name, burst))
                # Its threads wait for more work on the cores for a while.
                time.sleep(_SETTLE_S)
            else:
                seconds.append(median(mine[name], burst))
    rows = []
    for name, seconds in found.items():
        row = {"case": name, "ms": 1000 * statistics.median(seconds)}
        for peer in ("eenets", "earlyon"):
            if f"{peer}_{part}" in found:
                row[f"{peer}_over_this"] = ratio(
                    found[f"{peer}_{part}"], seconds
                )
        rows.append(row)
        print(", ".join(_shown(*item) for item in row.items()), flush=True)
    return rows


def _shown(key, value):
    return f"{key} {value:.4g}" if isinstance(value, float) else value


def network():
    plain = ee.backbones.resnet_cifar(20, (32, 32, 3), 10)
    return ee.add_exits(plain, 2)


def answers(path):
    """This library's answers to one image, by case."""
    model = network()
    ee.export(model, path)
    one = ee.load_bundle(path)
    # As many threads as PyTorch and TensorFlow take.
    all_cores = ee.load_bundle(path, num_threads=os.cpu_count())
    router = model.router
    x = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype("float32")
    router.warm_up((1,))
    cases = {}
    for part, thresholds in (("exit_0", EVERYBODY), ("final", NOBODY)):
        cases[f"model_{part}"] = lambda thresholds=thresholds: (
            router.predict_exits(x, thresholds=thresholds)
        )
        for name, bundle in (("litert", one), ("litert_all_cores", all_cores)):
            cases[f"{name}_{part}"] = (
                lambda bundle=bundle, thresholds=thresholds: bundle.route(
                    x, thresholds
                )
            )
    return cases


def training_step(**options):
    """One training step as `fit` makes it, on data that is there already."""
    model = network()
    model.compile("adam", "eenet_v2", metrics=[], **options)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(BATCH, 32, 32, 3)).astype("float32")
    y = generator.integers(0, 10, BATCH)
    return lambda: model.train_on_batch(x, y)


def answer_on_demand(cases):
    """The other end of a `Child`."""
    facts = {"cases": sorted(cases), "backend": keras.backend.backend()}
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        name, runs = line.split()
        print(median(cases[name], int(runs)), flush=True)


def median(function, runs):
    """Median seconds of calls in a row, after one."""
    return statistics.median(in_turn({"it": function}, runs)["it"])


class Child:
    """A process that times its cases when it is told to."""

    def __init__(self, command, **environment):
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.facts = json.loads(self._process.stdout.readline())
        self.cases = self.facts["cases"]

    def seconds(self, name, burst):
        self._process.stdin.write(f"{name} {burst}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=30)


if __name__ == "__main__":
    main()
