"""How near the plan's seconds come to measured ones, on one machine.

A ResNet-20 for 32x32 images with two early exits. Every row is a prediction of
`ee.plan_cut` over a measurement of the same thing that the profile was not
made from:

- answering at batch sizes that were profiled and that were not, with half of
  the samples leaving at the first exit and with none leaving early;
- training steps of both segments of each cut at a batch size between those
  profiled, and from the rule of three forward passes;
- answering with the parts of a plain model, estimated from their MACs.

    python benchmarks/plan.py

What workers and links add is not in it.
"""

import argparse
import os
import pathlib
import statistics

from _shared import in_turn, write_report

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

PROFILED, BETWEEN = (1, 8, 32), 16


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=30, help="each one timed")
    parser.add_argument("--output", type=pathlib.Path)
    options = parser.parse_args()
    import keras

    import keras_earlyexit as ee

    keras.utils.set_random_seed(0)
    policy = ee.policies.get("entropy", threshold=float("inf"))
    plain = ee.backbones.resnet_cifar(20, (32, 32, 3), 10)
    model = ee.add_exits(plain, 2, policy=policy)
    profile = ee.cost.profile(
        model, PROFILED, repeats=options.runs, training="sgd"
    )
    rows = [
        *answering(model, profile, options.runs),
        *training(model, profile, options.runs),
        *by_macs(plain, profile, options.runs),
    ]
    for row in rows:
        row["ratio"] = row["predicted_ms"] / row["measured_ms"]
        print(
            f"{row['what']:<52} {row['predicted_ms']:9.2f} ms "
            f"{row['measured_ms']:9.2f} ms  {row['ratio']:5.2f}"
        )
    write_report(options.output, rows, runs=options.runs, profiled=PROFILED)


def answering(model, profile, runs):
    """All stages in one place, for different batches and exit rates."""
    import numpy as np

    import keras_earlyexit as ee

    link = ee.cost.Link(1e9, 0.0)
    x = np.random.default_rng(0).normal(size=(256, 32, 32, 3))
    x = x.astype("float32")
    score = model.stages[0](x)["score"].numpy()
    for name, threshold in (
        ("nobody leaves early", np.inf),
        ("half leave at exit_0", float(np.median(score))),
    ):
        # The score of exit_1 lets nobody leave: what leaves there is exact.
        model.policy.threshold = (threshold, np.inf)
        rates = model.predict_exits(x).exit_shares(3)
        for size in (1, 8, BETWEEN, 32):
            batches = [x[i : i + size] for i in range(0, 256, size)]

            def answer(batches=batches):
                for batch in batches:
                    model.predict_exits(batch, batch_size=len(batch))

            seconds = in_turn({"answer": answer}, max(3, runs // 5))
            plan = ee.plan_cut(
                model, profile, profile, link, rates, batch_size=size
            )
            yield {
                "what": f"answer, batches of {size}, {name}",
                "predicted_ms": 1e3 * size * plan.row("edge").seconds,
                "measured_ms": 1e3
                * statistics.median(seconds["answer"])
                / len(batches),
            }


def training(model, profile, runs):
    """Steps of the segments, interpolated and by the rule."""
    import dataclasses

    import keras_earlyexit as ee

    link = ee.cost.Link(1e9, 0.0)
    measured = ee.cost.profile(model, (BETWEEN,), repeats=runs, training="sgd")
    unmeasured = dataclasses.replace(profile, training=())
    for how, own in (("interpolated", profile), ("rule", unmeasured)):
        plan = ee.plan_cut(
            model, own, own, link, mode="train", batch_size=BETWEEN
        )
        truth = ee.plan_cut(model, measured, measured, link, mode="train")
        for found, real in zip(plan.cuts, truth.cuts, strict=True):
            for side in ("edge", "cloud"):
                field = f"{side}_seconds"
                yield {
                    "what": f"train {side}, cut at {found.name}, {how}",
                    "predicted_ms": 1e3 * getattr(found, field),
                    "measured_ms": 1e3 * getattr(real, field),
                }


def by_macs(plain, profile, runs):
    """Parts of the model without exits, from the profile with exits."""
    import keras

    import keras_earlyexit as ee

    link = ee.cost.Link(1e9, 0.0)
    plan = ee.plan_cut(plain, profile, profile, link, batch_size=32)
    for name in ("block2_out", "block5_out", "block8_out"):
        part = keras.Model(plain.input, plain.get_layer(name).output)
        real = ee.cost.profile(part, (32,), repeats=runs)
        yield {
            "what": f"answer up to {name}, batches of 32, by MACs",
            "predicted_ms": 1e3 * 32 * plan.row(name).edge_seconds,
            "measured_ms": 1e3 * real.seconds(0, 32),
        }


if __name__ == "__main__":
    main()
