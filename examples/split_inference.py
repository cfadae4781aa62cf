"""A model over two machines: both workers as real processes, on loopback.

Trains a small network with two exits, chooses the threshold on a calibration
split, cuts it behind the first exit, starts a cloud worker and lets an edge
worker answer the test split. What leaves at the first exit never crosses.

    python examples/split_inference.py
    python examples/split_inference.py --data mnist --model demo/model.keras
    python examples/split_inference.py --codec uint8+zstd
    python examples/split_inference.py --engine ray
"""

import argparse
import collections
import contextlib
import json
import pathlib
import subprocess
import sys
import time

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

import keras_earlyexit as ee
from edge_worker import EdgeWorker

SPLITS = {
    "digits": ("train", "calibration", "test"),
    "mnist": ("train[:10000]", "train[55000:]", "test"),
}
#: How many answers may differ from the whole network's. The fewer samples to
#: calibrate with, the more it has to be.
LEVELS = {"digits": 0.02, "mnist": 0.005}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=sorted(SPLITS), default="digits")
    parser.add_argument("--model", help="a trained model.keras of the data")
    parser.add_argument("--codec", default="float32", help="of the features")
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--output", type=pathlib.Path, default="outputs/split")
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    train, calibration, test = (
        (ee.datasets.normalize(options.data, x), y)
        for x, y in (
            ee.datasets.load(options.data, split)
            for split in SPLITS[options.data]
        )
    )
    model = trained(options, train)
    # Nearly all answers are to be those of the whole network.
    level = LEVELS[options.data]
    print(ee.calibrate(model, calibration[0], epsilon=level))
    cut = options.output / "cut"
    options.output.mkdir(parents=True, exist_ok=True)
    ee.export(model, cut, cut="exit_0", overwrite=True)
    np.save(options.output / "x.npy", test[0])
    with cloud_worker(cut / "segment_1", options.engine) as address:
        print(f"The cloud worker listens on {address}.")
        summary = ask(options, cut / "segment_0", address)
        milliseconds = one_by_one(cut / "segment_0", address, test[0][:400])
    answers = answers_in(options.output)
    show(model, options, summary, answers, test, milliseconds)


def trained(options, train):
    if options.model:
        return keras.models.load_model(options.model)
    plain = ee.backbones.resnet_cifar(20, train[0].shape[1:], 10)
    model = ee.add_exits(plain, 2, block="plain", policy="max_probability")
    model.compile(keras.optimizers.Adam(2e-3), "branchynet")
    model.fit(*train, batch_size=64, epochs=options.epochs, verbose=2)
    return model


@contextlib.contextmanager
def cloud_worker(bundle, engine="local"):
    """The process that has the later stages; gives its address."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "cloud_worker", "serve", "--insecure"),
            *("--bundle", bundle, "--listen", "127.0.0.1:0"),
            *("--log-level", "warning", "--engine", engine),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        # Warnings may come before.
        lines = map(json.loads, process.stdout)
        yield next(line["address"] for line in lines if "address" in line)
    finally:
        process.terminate()
        process.communicate(timeout=60)


def ask(options, bundle, address):
    """The process that has the first stage, and needs no TensorFlow."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "edge_worker", "infer", "--insecure"),
            *("--bundle", bundle, "--cloud", address, "--json"),
            *("--codec", options.codec),
            *("--input", options.output / "x.npy"),
            *("--output", options.output / "answers.jsonl"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def answers_in(folder):
    lines = (folder / "answers.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def one_by_one(bundle, address, x):
    """Milliseconds of single samples, by the exit that they left at."""
    found = collections.defaultdict(list)
    with EdgeWorker(bundle, address, insecure=True) as worker:
        for sample in x:
            start = time.perf_counter()
            result = worker.predict(sample[None])
            seconds = time.perf_counter() - start
            found[result.exit_index[0]].append(1000 * seconds)
    return found


def show(model, options, summary, answers, test, milliseconds):
    """Share, accuracy, time and bytes of every exit."""
    x, y = test
    undivided = model.predict_exits(x)
    exits = np.array([answer["exit"] for answer in answers])
    classes = np.argmax([answer["prediction"] for answer in answers], axis=-1)
    right = classes == y
    by = collections.Counter(answer["answered_by"] for answer in answers)
    where = {answer["exit"]: answer["answered_by"] for answer in answers}
    sent = summary["bytes_up"] / max(by["cloud"], 1)
    table = Table(title=f"{len(y):,} samples of {options.data}")
    columns = (
        "exit",
        "where",
        "share",
        "accuracy",
        "ms, one by one",
        "bytes up",
    )
    for name in columns:
        table.add_column(name, justify="left" if name == "exit" else "right")
    for index, name in enumerate(model.exit_names):
        here = exits == index
        table.add_row(
            name,
            where.get(index, "-"),
            f"{here.mean():.1%}",
            f"{right[here].mean():.2%}" if here.any() else "-",
            f"{np.median(milliseconds[index]):.2f}"
            if milliseconds[index]
            else "-",
            f"{sent:,.0f}" if where.get(index) == "cloud" else "0",
        )
    table.add_section()
    raw = x[0].size
    table.add_row(
        "all",
        "",
        "100%",
        f"{right.mean():.2%}",
        f"{np.mean(sum(milliseconds.values(), [])):.2f}",
        f"{summary['bytes_up'] / len(y):,.0f}",
    )
    console = Console()
    console.print(table)
    same = (exits == undivided.exit_index).mean()
    print(f"same exit as the undivided model: {same:.2%}")
    print(f"answered by: {dict(by)}")
    print(
        f"{1000 * summary['seconds'] / len(y):.3f} ms a sample in batches; "
        f"an image has {raw:,} values; "
        f"{summary['bytes_down'] / len(y):,.0f} bytes down a sample"
    )


if __name__ == "__main__":
    main()
