"""The routed path against the plain model and against what is possible.

ResNet-20 with two early exits, random images, thresholds that let given shares
leave; all parts in turn, medians of their ratios:

    python benchmarks/routing.py --output routing.json

`ideal` is the sum over the stages of that stage's own compiled time for the
samples that reach it: efficiency = ideal / routed. `heads` is the network with
all exits' answers and no routing.
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
from keras_earlyexit.engines.graph import FOLD_FROM_ROWS
from keras_earlyexit.folding import fold
from keras_earlyexit.fusing import fuse
from keras_earlyexit.stages import Stages

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument(
        "--sizes", nargs="*", type=int, default=(1, 8, 32, 64, 256, 512)
    )
    parser.add_argument("--output", type=pathlib.Path)
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    bench = Bench()
    rows = []
    for size in options.sizes:
        for share in SHARES:
            runs = options.runs * max(1, 64 // size)
            row = bench.measure(size, share, runs)
            rows.append(row)
            shown = ", ".join(f"{k} {v:.4g}" for k, v in row.items())
            print(shown, flush=True)
    write_report(options.output, rows, runs=options.runs)


class Bench:
    """The networks that are compared, compiled once."""

    def __init__(self):
        plain = ee.backbones.resnet_cifar(20, (32, 32, 3), 10)
        model = ee.add_exits(plain, 2, policy="max_probability")
        self.model = model
        self.router = model.router
        self.router.warm_up((1, 64))
        self.plain = compiled(plain)
        names = list(model.exit_names)
        heads = keras.Model(
            model.net.input, {name: model.net.output[name] for name in names}
        )
        self.heads = compiled(heads)
        # As the router runs them: for few rows, and for many.
        self.stages = [
            [
                compiled(stage)
                for stage in Stages(
                    change(model.exit_graph), model.policy, model.head, "stages"
                )
            ]
            for change in (fuse, fold)
        ]

    def measure(self, size, share, runs):
        """One row: `share` of the samples leaves early, half at each exit."""
        x = np.random.default_rng(size).normal(size=(size, 32, 32, 3))
        x = x.astype("float32")
        thresholds, reaching = self.thresholds(x, share)
        features = self.features(x, reaching)
        stages = [
            self.stages[len(feature) >= FOLD_FROM_ROWS][k]
            for k, feature in enumerate(features)
            if len(feature)
        ]
        features = [feature for feature in features if len(feature)]
        found = in_turn(
            {
                "plain": lambda: fetch(self.plain(x)),
                "heads": lambda: fetch(self.heads(x)),
                "routed": lambda: self.router.predict_exits(
                    x, batch_size=size, thresholds=thresholds
                ),
                **{
                    f"stage {k}": lambda k=k: wait(stages[k](features[k]))
                    for k in range(len(stages))
                },
            },
            runs,
        )
        ideal = [
            sum(times)
            for times in zip(
                *(found[f"stage {k}"] for k in range(len(stages))),
                strict=True,
            )
        ]
        costs = self.model.relative_costs
        exits = -np.diff([*reaching, 0]) / size
        return {
            "batch": size,
            "leaves_early": 1 - reaching[-1] / size,
            "mean_cost": float(exits @ costs),
            "routed_ms": 1000 * statistics.median(found["routed"]),
            "plain_ms": 1000 * statistics.median(found["plain"]),
            "to_plain": ratio(found["routed"], found["plain"]),
            "to_heads": ratio(found["routed"], found["heads"]),
            "efficiency": ratio(ideal, found["routed"]),
        }

    def thresholds(self, x, share):
        """Thresholds for a share, and how many samples reach each stage."""
        scores = ee.calibration.observe(self.model, x, verbose=0).scores
        first = round(len(x) * share / 2)
        both = round(len(x) * share)
        order = np.argsort(-scores[:, 0])
        one = between(scores[order, 0], first)
        rest = order[first:]
        two = between(-np.sort(-scores[rest, 1]), both - first)
        thresholds = np.array([one, two], "float32")
        taken = self.router.predict_exits(
            x, batch_size=len(x), thresholds=thresholds
        ).exit_index
        return thresholds, [int(np.sum(taken >= k)) for k in range(3)]

    def features(self, x, reaching):
        """Inputs of the stages: as many samples as reach each of them."""
        found = [tf.constant(x)]
        for k in range(2):
            feature = self.stages[0][k](found[-1])["feature"]
            found.append(feature[: reaching[k + 1]])
        return found


def between(falling, count):
    """A threshold that exactly `count` of falling scores are above."""
    if count == 0:
        return np.inf
    if count == len(falling):
        return -np.inf
    return (falling[count - 1] + falling[count]) / 2


def compiled(model):
    """What answers a batch of any size, without `tf.function`'s overhead."""
    spec = tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.float32)
    function = tf.function(
        lambda batch: model(batch, training=False), input_signature=[spec]
    )
    concrete = function.get_concrete_function()
    return lambda batch: concrete(tf.convert_to_tensor(batch))


def fetch(outputs):
    return [part.numpy() for part in tf.nest.flatten(outputs)]


def wait(outputs):
    """Waits until a stage is done, without copying its feature."""
    outputs["prediction"].numpy()


if __name__ == "__main__":
    main()
