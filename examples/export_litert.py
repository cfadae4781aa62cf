"""A model with exits leaves Python: LiteRT files, smaller and smaller.

Trains a small network, writes it as a bundle in float32, float16 and int8, and
compares size, answers and time with the model. The bundles are answered from
without TensorFlow or Keras, as on a small device:

    python examples/export_litert.py         # under two minutes
    python examples/export_litert.py --model demo/model.keras --data mnist
"""

import argparse
import pathlib
import time

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

import keras_earlyexit as ee

SPLITS = {
    "digits": ("train", "calibration", "test"),
    "mnist": ("train[:10000]", "train[55000:]", "test"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=sorted(SPLITS), default="digits")
    parser.add_argument("--model", help="a trained model.keras of the data")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--output", type=pathlib.Path, default="outputs/litert")
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    train, calibration, test = (
        (ee.datasets.normalize(options.data, x), y)
        for x, y in (
            ee.datasets.load(options.data, split)
            for split in SPLITS[options.data]
        )
    )
    console = Console()
    if options.model:
        model = keras.models.load_model(options.model)
    else:
        model = trained(console, train, options.epochs)
    print(ee.calibrate(model, *calibration, epsilon=0.03))
    rows = [("the model", *measured(model, *test), "")]
    for quantize in (None, "float16", "int8"):
        name = quantize or "float32"
        with console.status(f"Writing the bundle in {name}"):
            report = ee.export(
                model,
                options.output / name,
                quantize=quantize,
                representative=calibration,
                overwrite=True,
            )
        bundle = ee.load_bundle(options.output / name)
        size = f"{report.num_bytes / 1024:,.0f} kB"
        rows.append((f"LiteRT, {name}", *measured(bundle, *test), size))
    show(console, rows, options.output)


def trained(console, train, epochs):
    """A small network with two exits, all of them trained."""
    shape, num_classes = train[0].shape[1:], int(train[1].max()) + 1
    model = ee.add_exits(
        ee.backbones.resnet_cifar(8, shape, num_classes),
        exits=2,
        block="plain",
        policy="max_probability",
    )
    model.compile(keras.optimizers.Adam(2e-3), "branchynet")
    with console.status(f"Training for {epochs} epochs"):
        model.fit(*train, batch_size=64, epochs=epochs, verbose=0)
    return model


def measured(answering, x, y, singles=200):
    """Accuracy, mean cost, and the median milliseconds of single samples."""
    result = answering.predict_exits(x)
    right = (result.predictions.argmax(axis=-1) == y).mean()
    times = []
    # The first calls are slower than those that follow.
    for i in range(-10, singles):
        one = x[i % len(x)][None]
        started = time.perf_counter()
        answering.predict_exits(one)
        times.append(time.perf_counter() - started)
    return right, result.mean_cost, 1e3 * np.median(times[10:])


def show(console, rows, folder):
    table = Table("", "accuracy", "mean cost", "ms for one sample", "size")
    for name, right, cost, milliseconds, size in rows:
        table.add_row(
            name, f"{right:.2%}", f"{cost:.3f}", f"{milliseconds:.2f}", size
        )
    console.print(table)
    console.print(
        f"In {folder}: copy one folder to a device, pip install "
        '"keras-earlyexit[edge]" there, and '
        "keras_earlyexit.load_bundle(folder).predict_exits(x)."
    )


if __name__ == "__main__":
    main()
