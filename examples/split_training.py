"""Hierarchical training over two machines: two real processes, on loopback.

The edge worker trains the first segment with its own exit; features and labels
go up, and the cloud worker trains the rest at the same time. No gradient comes
back, and no image crosses. Then both halves are merged and compared with the
same network trained undivided in a process of its own, as a cloud would that
gets all images: that does not count the time in which they cross.

    python examples/split_training.py
    python examples/split_training.py --forward all
    python examples/split_training.py --data digits  # needs no download
"""

import argparse
import contextlib
import json
import multiprocessing
import pathlib
import shutil
import subprocess
import sys
import time

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

import keras_earlyexit as ee

SPLITS = {"digits": ("train", "test"), "mnist": ("train[:10000]", "test")}
EPOCHS = {"digits": 10, "mnist": 3}
#: Late, where features are small; the edge has both early exits.
EXITS, CUT = ("block4_out", "block7_out"), "exit_1"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=sorted(SPLITS), default="mnist")
    parser.add_argument("--forward", default="non_exited")
    parser.add_argument("--codec", default="uint4+zstd", help="of the features")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--output", type=pathlib.Path, default="outputs/split_training"
    )
    options = parser.parse_args()
    options.epochs = options.epochs or EPOCHS[options.data]
    # What an unfinished run has left would be gone on with.
    shutil.rmtree(options.output, ignore_errors=True)
    options.output.mkdir(parents=True)
    train, test = (
        ee.datasets.load(options.data, split) for split in SPLITS[options.data]
    )
    normal = ee.datasets.normalize(options.data, test[0]), test[1]
    model = network(normal[0].shape[1:])
    model.save(options.output / "model.keras")

    start = time.perf_counter()
    with cloud_worker(options) as address:
        print(f"The cloud worker listens on {address}.", flush=True)
        summary = train_edge(options, address)
        seconds = time.perf_counter() - start
    run(
        *("keras_earlyexit", "merge", options.output / "edge.keras"),
        *(options.output / "cloud.keras", "-o"),
        options.output / "merged.keras",
    )
    merged = keras.models.load_model(options.output / "merged.keras")

    print("The same network, undivided:", flush=True)
    start = time.perf_counter()
    # A process of its own, like the others: what it takes to start counts.
    process = multiprocessing.get_context("spawn").Process(
        target=train_alone, args=(options,)
    )
    process.start()
    process.join()
    alone_seconds = time.perf_counter() - start
    undivided = keras.models.load_model(options.output / "undivided.keras")
    show(
        options,
        {
            "edge and cloud": (merged, seconds, summary["bytes_up"]),
            # If the cloud keeps the images; else they cross in each epoch.
            "all in the cloud": (undivided, alone_seconds, train[0].nbytes),
        },
        normal,
    )
    print(
        f"bytes down: {summary['bytes_down']:,} for {summary['batches']:,} "
        f"batches; the cloud waited {summary['cloud_idle_share']:.0%} of the "
        "time"
    )


def network(input_shape):
    keras.utils.set_random_seed(0)
    plain = ee.backbones.resnet_cifar(20, input_shape, 10)
    return ee.add_exits(
        plain, list(EXITS), block="plain", policy="max_probability"
    )


@contextlib.contextmanager
def cloud_worker(options):
    """The process that trains the later segment; gives its address."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "cloud_worker", "serve", "--train"),
            *("--model", options.output / "model.keras", "--cut", CUT),
            *("--state", options.output / "ledger", "--base", "branchynet"),
            *("--output", options.output / "cloud.keras"),
            *("--learning-rate", "0.002", "--log-level", "warning"),
            *("--insecure", "--listen", "127.0.0.1:0"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield json.loads(process.stdout.readline())["address"]
    finally:
        # It writes its segment before it ends.
        process.terminate()
        process.communicate(timeout=60)


def train_edge(options, address):
    """The process that trains the first segment; returns its summary."""
    run(
        *("edge_worker", "train", "--model", options.output / "model.keras"),
        *("--data", options.data, "--split", SPLITS[options.data][0]),
        *("--cut", CUT, "--base", "branchynet", "--cloud", address),
        *("--state", options.output / "edge", "--forward", options.forward),
        *("--output", options.output / "edge.keras"),
        *("--summary", options.output / "summary.json"),
        *("--codec", options.codec, "--epochs", options.epochs),
        *("--batch-size", options.batch_size, "--learning-rate", "0.002"),
        "--insecure",
    )
    return json.loads((options.output / "summary.json").read_text())


def run(*command):
    subprocess.run(
        [sys.executable, "-m", *map(str, command)], check=True, timeout=1200
    )


def train_alone(options):
    """The network trained in one piece, for as many epochs."""
    x, y = ee.datasets.load(options.data, SPLITS[options.data][0])
    x = ee.datasets.normalize(options.data, x)
    model = network(x.shape[1:])
    model.compile(keras.optimizers.Adam(0.002), "branchynet")
    model.fit(
        x, y, batch_size=options.batch_size, epochs=options.epochs, verbose=2
    )
    model.save(options.output / "undivided.keras")


def show(options, rows, test):
    """Accuracy of every exit, time and bytes of both ways."""
    x, y = test
    table = Table(title=f"{options.epochs} epochs of {options.data}")
    for name in ("trained", "exit_0", "exit_1", "final"):
        table.add_column(name)
    table.add_column("seconds", justify="right")
    table.add_column("bytes up", justify="right")
    for name, (model, seconds, num_bytes) in rows.items():
        answers = model.net.predict(x, batch_size=256, verbose=0)
        accuracies = [
            f"{np.mean(answers[exit_].argmax(-1) == y):.2%}"
            for exit_ in model.exit_names
        ]
        table.add_row(name, *accuracies, f"{seconds:.1f}", f"{num_bytes:,}")
    Console().print(table)


if __name__ == "__main__":
    main()
