"""From a network of your own to two machines: the whole way as one script.

Trains a network here (nothing is downloaded), keeps it frozen and trains exits
on it, chooses a threshold with a guarantee, measures this machine, plans where
to cut for a link, exports both halves, starts both workers as processes, and
compares what comes back with the network in one piece.

    python examples/whole_story.py                          # digits, minutes
    python examples/whole_story.py --data tiny_imagenet20
    python examples/whole_story.py --mbits 2 --codec uint8+zstd

It is made of the steps of `pretrained.py` and `split_inference.py`.
"""

import argparse
import pathlib

import keras
import numpy as np
import pretrained
import split_inference
from rich.console import Console

import keras_earlyexit as ee


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", choices=sorted(pretrained.DATA), default="digits"
    )
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--exit-epochs", type=int, default=8)
    parser.add_argument("--epsilon", type=float, default=0.03)
    parser.add_argument("--mbits", type=float, default=10.0, help="a second")
    parser.add_argument("--round-trip-ms", type=float, default=20.0)
    parser.add_argument("--codec", default="float32", help="of the features")
    parser.add_argument("--output", type=pathlib.Path, default="outputs/story")
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    options.output.mkdir(parents=True, exist_ok=True)
    say = Console().rule

    say("1  A network is trained")
    train, calibration, test = pretrained.splits(options.data)
    plain = pretrained.network(train[0].shape[1:], int(train[1].max()) + 1)
    plain.compile(
        keras.optimizers.Adam(1e-3),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    plain.fit(*train, batch_size=64, epochs=options.epochs, verbose=2)

    say("2  Exits are trained on it; it stays as it is")
    model = ee.add_exits(
        plain, exits=[0.3, 0.6], block="conv", policy="max_probability"
    )
    model.compile("adam", "branchynet", regime="disjoint")
    model.fit(*train, batch_size=64, epochs=options.exit_epochs, verbose=2)

    say("3  The threshold is chosen")
    print(
        ee.calibrate(
            model,
            *calibration,
            risk="performance_gap",
            epsilon=options.epsilon,
        )
    )
    Console().print(pretrained.table(model, *test))
    model.save(options.output / "model.keras")

    say("4  Where to cut")
    link = ee.cost.Link(1e6 * options.mbits, options.round_trip_ms / 1000)
    cut = chosen_cut(model, link, calibration[0])

    say("5  Two machines: here two processes")
    halves = options.output / "cut"
    ee.export(model, halves, cut=cut, overwrite=True)
    np.save(options.output / "x.npy", test[0])
    with split_inference.cloud_worker(halves / "segment_1") as address:
        summary = split_inference.ask(options, halves / "segment_0", address)
        milliseconds = split_inference.one_by_one(
            halves / "segment_0", address, test[0][:200]
        )
    answers = split_inference.answers_in(options.output)
    split_inference.show(model, options, summary, answers, test, milliseconds)
    print(f"Everything is in {options.output}.")


def chosen_cut(model, link, x):
    """The exit to cut at: planned with this machine for both sides."""
    profile = ee.cost.profile(model, batch_sizes=(1,))
    shares = model.predict_exits(x).exit_shares(len(model.exit_names))
    plan = ee.plan_cut(model, profile, profile, link, exit_rates=shares)
    print(plan)
    return plan.best.name


if __name__ == "__main__":
    main()
