"""What choosing a threshold costs, against one plain prediction of the set.

    python benchmarks/calibration_pass.py --output calibration_pass.json

A ResNet-20 with random weights predicts the samples, once by Keras' own
`predict` and once by a compiled function in batches of 256, and the same
network with two exits is observed and calibrated. All in one process and in
turns, so that only the ratios are to be read; those of processor time suffer
less from other work on the machine.
"""

import argparse
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from _shared import write_report

import keras_earlyexit as ee
from keras_earlyexit.calibration import Fingerprints, fingerprints_of, observe

BATCH = 256


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--output", type=pathlib.Path)
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    x, y = ee.datasets.load(options.data, "train")
    x = ee.datasets.normalize(options.data, x[: options.samples])
    y = y[: options.samples]
    plain = ee.backbones.resnet_cifar(20, x.shape[1:], int(y.max()) + 1)
    model = ee.add_exits(plain, 2, copy=True, policy="max_probability")
    record = Fingerprints()
    record.add(1.0 + x)
    model.training_fingerprints = record
    forward = compiled(plain)
    seen = observe(model, x, y, verbose=0)
    parts = {
        "predict": lambda: plain.predict(x, batch_size=BATCH, verbose=0),
        "compiled": lambda: np.concatenate(
            [forward(x[i : i + BATCH]).numpy() for i in range(0, len(x), BATCH)]
        ),
        "observe": lambda: observe(model, x, y, verbose=0),
        "and choose": lambda: choose(model, observe(model, x, y, verbose=0)),
        "choose": lambda: choose(model, seen),
        "fingerprints": lambda: fingerprints_of(x),
    }
    times = in_turn(parts, options.runs)
    rows = [row(name, times) for name in parts]
    print(f"{len(x)} samples of {options.data}, medians of {options.runs}")
    print(f"{'':>12} {'seconds':>8} {'to predict':>16} {'to compiled':>16}")
    print(f"{'':>12} {'':>8} {'time processor':>16} {'time processor':>16}")
    for found in rows:
        ratios = [
            found[f"{kind}to_{base}"]
            for base in ("predict", "compiled")
            for kind in ("", "processor_")
        ]
        shown = "".join(f" {ratio:>7.3f}" for ratio in ratios)
        print(f"{found['what']:>12} {found['seconds']:>8.3f} {shown}")
    network = float(model.relative_costs[-1])
    print(f"multiply-adds of the network with exits: {network:.3f}")
    write_report(
        options.output,
        rows,
        data=options.data,
        samples=len(x),
        runs=options.runs,
        relative_cost_of_final=network,
    )


def choose(model, seen):
    ee.calibrate(model, seen, risk="performance_gap", epsilon=0.5)


def compiled(net):
    spec = tf.TensorSpec((None, *net.input_shape[1:]), tf.float32)
    return tf.function(lambda x: net(x, training=False), input_signature=[spec])


def in_turn(parts, runs):
    """Seconds, elapsed and of the processor, of every part, run after run."""
    times = {name: [] for name in parts}
    for run in range(runs + 1):
        for name, part in parts.items():
            start = time.perf_counter(), time.process_time()
            part()
            end = time.perf_counter(), time.process_time()
            if run:  # The first one warms up.
                times[name].append(
                    [b - a for a, b in zip(start, end, strict=True)]
                )
    return {name: np.array(found).T for name, found in times.items()}


def row(name, times):
    """Medians: of the seconds, and of the ratios run by run."""
    seconds, processor = times[name]
    found = {
        "what": name,
        "seconds": float(np.median(seconds)),
        "lowest": float(seconds.min()),
        "highest": float(seconds.max()),
    }
    for base in ("predict", "compiled"):
        ratios = seconds / times[base][0], processor / times[base][1]
        found[f"to_{base}"] = float(np.median(ratios[0]))
        found[f"processor_to_{base}"] = float(np.median(ratios[1]))
    return found


if __name__ == "__main__":
    main()
