"""Hierarchical training over two machines: two real processes, on loopback.

The edge worker trains the first segment with its own exits; features and labels
go up, and the cloud worker trains the rest at the same time. No gradient comes
back, and no image crosses. Then both halves are merged and compared with the
same network trained undivided, as a cloud would that gets all images.

    python examples/split_training.py
    python examples/split_training.py --forward all
    python examples/split_training.py --data digits  # needs no download

MNIST is cut down to 20,000 of its 60,000 training images, for a run of a minute
or two; `--images 60000` takes all of them.
"""

import argparse
import contextlib
import json
import math
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
from protos.tensors import encode

IMAGES = {"digits": 1000, "mnist": 20_000}
EPOCHS = {"digits": 10, "mnist": 3}
#: Late, where features are small; the edge has both early exits.
EXITS, CUT = ("block2", "block3"), "exit_1"
FILTERS = (16, 32, 32)
LEARNING_RATE = 0.002


def main():
    options = parse()
    # What an unfinished run has left would be gone on with.
    shutil.rmtree(options.output, ignore_errors=True)
    options.output.mkdir(parents=True)
    train = ee.datasets.load(options.data, options.split)
    x, y = ee.datasets.load(options.data, "test")
    test = ee.datasets.normalize(options.data, x), y
    model = network(test[0].shape[1:])
    model.save(options.output / "model.keras")
    print(f"{len(train[0]):,} images of {options.data}", flush=True)

    with cloud_worker(options) as address:
        print(f"The cloud worker listens on {address}.", flush=True)
        summary = train_edge(options, address)
    halves = (
        keras.models.load_model(options.output / f"{side}.keras")
        for side in ("edge", "cloud")
    )
    merged = ee.merge(*halves)
    merged.save(options.output / "merged.keras")

    print("The same network, undivided:", flush=True)
    model.compile(keras.optimizers.Adam(LEARNING_RATE), "branchynet")
    start = time.perf_counter()
    model.fit(
        ee.datasets.normalize(options.data, train[0]),
        train[1],
        batch_size=options.batch_size,
        epochs=options.epochs,
        verbose=2,
    )
    seconds = time.perf_counter() - start
    raw = raw_bytes(train[0], options.batch_size)
    show(
        options,
        {
            "edge and cloud": (merged, summary["seconds"], summary["bytes_up"]),
            "all in the cloud": (model, seconds, raw * options.epochs),
        },
        test,
    )
    print(
        f"Bytes up in {options.epochs} epochs, images as 8 bits, compressed; a "
        f"cloud that keeps them gets {raw:,} bytes once.\nSeconds leave out "
        "the start of the processes, and the way of the images.\n"
        f"Bytes down: {summary['bytes_down']:,} for {summary['batches']:,} "
        f"batches. The cloud waited {summary['cloud_idle_share']:.0%} of the "
        f"time.\nThe merged model is in {options.output / 'merged.keras'}."
    )


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=sorted(IMAGES), default="mnist")
    parser.add_argument("--images", type=int, help="of the training images")
    parser.add_argument("--forward", default="non_exited")
    parser.add_argument("--codec", default="uint4+zstd", help="of the features")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--output", type=pathlib.Path, default="outputs/split_training"
    )
    options = parser.parse_args()
    options.epochs = options.epochs or EPOCHS[options.data]
    options.split = f"train[:{options.images or IMAGES[options.data]}]"
    return options


def network(input_shape):
    """Three blocks for the edge, of which two have exits; two for the cloud."""
    keras.utils.set_random_seed(0)
    image = x = keras.Input(input_shape)
    options = {"kernel_size": 3, "padding": "same", "activation": "relu"}
    for i, filters in enumerate(FILTERS, start=1):
        x = keras.layers.Conv2D(filters, **options)(x)
        x = keras.layers.MaxPooling2D(name=f"block{i}")(x)
    for _ in range(2):
        x = keras.layers.Conv2D(96, **options)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(10, activation="softmax")(x)
    return ee.add_exits(
        keras.Model(image, outputs, name="convolutions"),
        list(EXITS),
        block="plain",
        policy="max_probability",
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
            *("--learning-rate", str(LEARNING_RATE)),
            *("--log-level", "warning"),
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
        process.communicate(timeout=300)


def train_edge(options, address):
    """The process that trains the first segment; returns its summary."""
    command = [
        *(sys.executable, "-m", "edge_worker", "train"),
        *("--model", options.output / "model.keras"),
        *("--data", options.data, "--split", options.split),
        *("--cut", CUT, "--base", "branchynet", "--cloud", address),
        *("--state", options.output / "edge", "--forward", options.forward),
        *("--output", options.output / "edge.keras"),
        *("--summary", options.output / "summary.json"),
        *("--codec", options.codec, "--epochs", options.epochs),
        *("--batch-size", options.batch_size, "--learning-rate", LEARNING_RATE),
        "--insecure",
    ]
    subprocess.run([str(part) for part in command], check=True, timeout=1200)
    return json.loads((options.output / "summary.json").read_text())


def raw_bytes(images, batch_size):
    """What the images of an epoch and their labels take on the same wire."""
    batches = range(0, len(images), batch_size)
    messages = (
        encode(images[i : i + batch_size], "uint8+zstd") for i in batches
    )
    labels = np.dtype("int32").itemsize * len(images)
    return labels + sum(message.ByteSize() for message in messages)


def show(options, rows, test):
    """Accuracy of every exit, time and bytes of both ways."""
    x, y = test
    table = Table(title=f"{options.epochs} epochs of {options.data}")
    for name in ("trained", "exit_0", "exit_1", "final"):
        table.add_column(name)
    table.add_column("seconds", justify="right")
    table.add_column("bytes up", justify="right")
    for name, (model, seconds, num_bytes) in rows.items():
        batches = np.array_split(x, math.ceil(len(x) / 1000))
        answers = [model.net(batch) for batch in batches]
        accuracies = []
        for exit_ in model.exit_names:
            found = [np.argmax(answer[exit_], axis=-1) for answer in answers]
            accuracies.append(f"{np.mean(np.concatenate(found) == y):.2%}")
        table.add_row(name, *accuracies, f"{seconds:.1f}", f"{num_bytes:,}")
    Console().print(table)


if __name__ == "__main__":
    main()
