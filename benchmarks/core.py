"""What exits cost and save: training, routing, building and importing.

Every figure is a ratio or a time from one run, the compared parts in turn:

    python benchmarks/core.py
    python benchmarks/core.py --model demo/model.keras --data mnist
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from _shared import clock, in_turn, ratio, write_report

import keras_earlyexit as ee


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15, help="pairs of runs")
    parser.add_argument("--model", help="a trained model.keras, for routing")
    parser.add_argument("--data", default="mnist", help="what it answers")
    parser.add_argument("--output", type=pathlib.Path)
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    rows = [
        training_step(options.runs),
        *nobody_leaves(options.runs),
        building(),
        *importing(max(options.runs // 3, 3)),
    ]
    if options.model:
        rows.append(trained(options.model, options.data, options.runs))
    for row in rows:
        figures = {k: v for k, v in row.items() if k not in ("what", "bar")}
        shown = ", ".join(f"{k} {v:.4g}" for k, v in figures.items())
        print(f"{row['what']}: {shown} (bar: {row['bar']})")
    write_report(options.output, rows, runs=options.runs)


def networks():
    """A ResNet-20 for CIFAR-10, and an independent copy with two exits."""
    plain = ee.backbones.resnet_cifar(20, (32, 32, 3), 10)
    return plain, ee.add_exits(plain, 2, copy=True)


def pairs(first, second, runs):
    """Medians of both, and the median of their ratios pair by pair."""
    found = in_turn({"first": first, "second": second}, runs)
    one, other = found["first"], found["second"]
    return (
        statistics.median(one),
        statistics.median(other),
        ratio(one, other),
    )


def training_step(runs, batch=128, steps=4):
    """Images per second in `fit`, with exits over without."""
    plain, model = networks()
    generator = np.random.default_rng(0)
    x = generator.normal(size=(batch * steps, 32, 32, 3)).astype("float32")
    y = generator.integers(0, 10, len(x))
    plain.compile(
        "adam", "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    model.compile("adam", "eenet_v2")
    pair = [
        lambda net=net: net.fit(x, y, batch_size=batch, verbose=0)
        for net in (plain, model)
    ]
    with_out, with_exits, ratio = pairs(*pair, max(runs // 3, 3))
    return {
        "what": "training, ResNet-20 with three exits, batch 128",
        "plain_images_per_second": len(x) / with_out,
        "images_per_second": len(x) / with_exits,
        "ratio": ratio,
        "bar": "at least 0.95",
    }


def nobody_leaves(runs, sizes=(1, 32, 256)):
    """Time of a routed answer over the plain compiled model's."""
    plain, model = networks()
    model.policy = ee.policies.get("learned", threshold=np.inf)
    forward = compiled(plain)
    generator = np.random.default_rng(0)
    for size in sizes:
        x = generator.normal(size=(size, 32, 32, 3)).astype("float32")
        routed, without, ratio = pairs(
            lambda x=x: model.predict_exits(x, batch_size=len(x)),
            lambda x=x: forward(x).numpy(),
            runs if size > 1 else 10 * runs,
        )
        yield {
            "what": f"nobody leaves, ResNet-20, batch {size}",
            "plain_ms": 1000 * without,
            "routed_ms": 1000 * routed,
            "ratio": ratio,
            "bar": "at most 1.10" if size == 256 else "none",
        }


def trained(path, data, runs):
    """A trained model on real images: routed time over plain time."""
    model = keras.models.load_model(path)
    forward = compiled(ee.strip_exits(model))
    x, y = ee.datasets.load(data, "test")
    x = ee.datasets.normalize(data, x)[:4096]
    parts = [x[i : i + 256] for i in range(0, len(x), 256)]
    routed, without, ratio = pairs(
        lambda: [model.predict_exits(part) for part in parts],
        lambda: [forward(part).numpy() for part in parts],
        max(runs // 3, 3),
    )
    result = model.predict_exits(x)
    right = result.predictions.argmax(axis=-1) == y[: len(x)]
    return {
        "what": f"trained model on {data}, batch 256",
        "plain_ms_per_image": 1000 * without / len(x),
        "routed_ms_per_image": 1000 * routed / len(x),
        "ratio": ratio,
        "mean_cost": result.mean_cost,
        "accuracy": float(right.mean()),
        "bar": "at most 0.6",
    }


def compiled(net):
    spec = tf.TensorSpec((None, *net.input_shape[1:]), tf.float32)
    return tf.function(lambda x: net(x, training=False), input_signature=[spec])


def building():
    net = keras.applications.ResNet50(weights=None)
    return {
        "what": "add_exits on ResNet50",
        "seconds": clock(lambda: ee.add_exits(net)),
        "bar": "under 1 s",
    }


def importing(runs):
    """Seconds of imports, each in a process of its own."""
    yield {
        "what": "import keras_earlyexit",
        "seconds": import_seconds("pass", "import keras_earlyexit", runs),
        "bar": "under 0.1 s",
    }
    yield {
        "what": "add_exits on top of `import keras`",
        "seconds": import_seconds(
            "import keras", "import keras_earlyexit as ee; ee.add_exits", runs
        ),
        "bar": "at most 0.2 s",
    }


def import_seconds(before, statement, runs):
    program = (
        f"import time\n{before}\nstart = time.perf_counter()\n"
        f"{statement}\nprint(time.perf_counter() - start)"
    )
    times = [
        float(
            subprocess.run(
                [sys.executable, "-c", program],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for _ in range(runs)
    ]
    return statistics.median(times)


if __name__ == "__main__":
    main()
