"""Exits on a large network against simply using a smaller one.

Plain ResNets of several depths, and the deepest one with exits (`branchynet`,
policy `max_probability`), trained alike. For each smaller network the
threshold is the cheapest with which the one with exits is as good on the
calibration split; accuracy and cost are then those on the test split.

    python benchmarks/static_models.py --data cifar10
"""

import argparse
import os
import pathlib
import statistics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from _shared import in_turn, ratio, write_report

import keras_earlyexit as ee

BATCH = 128


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--train", default="train[:20000]")
    parser.add_argument("--calibration", default="train[45000:]")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--depths", nargs="*", type=int, default=(8, 14, 20))
    parser.add_argument("--exits", type=int, default=3)
    parser.add_argument("--block", default="conv")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path)
    options = parser.parse_args()
    data = Data(options)
    networks = {depth: data.trained(depth) for depth in options.depths}
    deepest = max(options.depths)
    model = data.trained_with_exits(deepest)
    plain_macs = ee.cost.count(networks[deepest]).macs
    seen = ee.calibration.observe(model, *data.calibration, verbose=0)
    test = ee.calibration.observe(model, *data.test, verbose=0)
    rows = []
    for depth, plain in networks.items():
        threshold = as_good_as(seen, accuracy(plain, data.calibration))
        row = {
            "static": f"ResNet-{depth}",
            "static_accuracy": accuracy(plain, data.test),
            "static_cost": ee.cost.count(plain).macs / plain_macs,
            "exits_accuracy": test.accuracy(threshold),
            "exits_cost": test.mean_cost(threshold),
            **times(plain, model, threshold, data.test[0], options.runs),
        }
        rows.append(row)
        print(", ".join(_shown(*item) for item in row.items()), flush=True)
    print("exits alone:", np.round(test.exit_accuracies(), 4).tolist())
    write_report(
        options.output,
        rows,
        **{
            name: value
            for name, value in vars(options).items()
            if name != "output"
        },
    )


class Data:
    """The splits, and networks trained on them."""

    def __init__(self, options):
        self._options = options
        self._train = ee.datasets.load(options.data, options.train)
        self.calibration, self.test = (
            (ee.datasets.normalize(options.data, x), y)
            for x, y in (
                ee.datasets.load(options.data, split)
                for split in (options.calibration, "test")
            )
        )

    def trained(self, depth):
        """A plain network."""
        plain = self._network(depth)
        plain.compile(
            self._optimizer(),
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        return self._fit(plain)

    def trained_with_exits(self, depth):
        """The same with exits, from scratch, for as many epochs."""
        model = ee.add_exits(
            self._network(depth),
            self._options.exits,
            block=self._options.block,
            policy="max_probability",
        )
        model.compile(self._optimizer(), "branchynet")
        return self._fit(model)

    def _network(self, depth):
        keras.utils.set_random_seed(self._options.seed)
        shape = self.test[0].shape[1:]
        return ee.backbones.resnet_cifar(depth, shape, 10)

    def _optimizer(self):
        steps = self._options.epochs * -(-len(self._train[1]) // BATCH)
        return keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(2e-3, steps)
        )

    def _fit(self, network):
        batches = ee.datasets.pipeline(
            self._train,
            batch_size=BATCH,
            recipe=self._options.data,
            training=True,
            seed=self._options.seed,
        )
        network.fit(batches, epochs=self._options.epochs, verbose=2)
        return network


def accuracy(plain, data):
    x, y = data
    found = plain.predict(x, batch_size=256, verbose=0)
    return float((found.argmax(axis=-1) == y).mean())


def as_good_as(seen, wanted):
    """The cheapest threshold of this accuracy, or `inf` if there is none."""
    for threshold in np.quantile(seen.scores, np.linspace(0, 1, 400)):
        if seen.accuracy(float(threshold)) >= wanted:
            return float(threshold)
    return float("inf")


def times(plain, model, threshold, x, runs):
    """Milliseconds per image of both, in turn, on images of the test split."""
    model.policy.threshold = threshold
    router = model.router
    found = {}
    for size in (1, 256):
        parts = [x[i : i + size] for i in range(0, size * 20, size)]
        taken = in_turn(
            {
                "static": over(parts, compiled(plain, size)),
                "exits": over(parts, router.predict_exits),
            },
            max(runs // 5, 5) if size > 1 else runs,
        )
        for name, seconds in taken.items():
            found[f"{name}_ms_batch_{size}"] = (
                1000 * statistics.median(seconds) / (20 * size)
            )
        found[f"time_ratio_batch_{size}"] = ratio(
            taken["exits"], taken["static"]
        )
    return found


def over(parts, answer):
    return lambda: [answer(part) for part in parts]


def compiled(net, size):
    spec = tf.TensorSpec((size, *net.input_shape[1:]), tf.float32)
    function = tf.function(
        lambda x: net(x, training=False), input_signature=[spec]
    ).get_concrete_function()
    return lambda x: function(tf.convert_to_tensor(x)).numpy()


def _shown(key, value):
    shown = f"{value:.4g}" if isinstance(value, float) else value
    return f"{key} {shown}"


if __name__ == "__main__":
    main()
