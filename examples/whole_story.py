"""From a network of your own to two machines: the whole way as one script.

Trains a network here (nothing is downloaded), keeps it frozen and trains exits
on it, chooses a threshold with a guarantee, measures this machine, plans where
to cut for a link, exports both halves, starts both workers as processes, and
compares what comes back with the network in one piece.

    python examples/whole_story.py                          # digits, a minute
    python examples/whole_story.py --data mnist
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
from rich.table import Table

import keras_earlyexit as ee

#: Epochs of the network, of its exits, and how much accuracy may be lost: the
#: fewer samples to calibrate with, the more it has to be.
SETTINGS = {
    "digits": (24, 16, 0.03),
    "mnist": (3, 3, 0.01),
    "tiny_imagenet20": (8, 8, 0.03),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=sorted(SETTINGS), default="digits")
    parser.add_argument("--epochs", type=int, help="of the network")
    parser.add_argument("--exit-epochs", type=int, help="of its exits")
    parser.add_argument("--epsilon", type=float, help="accuracy to lose")
    parser.add_argument("--mbits", type=float, default=10.0, help="a second")
    parser.add_argument("--round-trip-ms", type=float, default=20.0)
    parser.add_argument("--codec", default="float32", help="of the features")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default="outputs/story")
    options = parser.parse_args()
    epochs, exit_epochs, epsilon = SETTINGS[options.data]
    keras.utils.set_random_seed(options.seed)
    options.output.mkdir(parents=True, exist_ok=True)
    console = Console()
    say = console.rule

    say("1  A network is trained")
    train, calibration, test = splits(options.data)
    plain = network(options.data, train[0].shape[1:], int(train[1].max()) + 1)
    plain.compile(
        keras.optimizers.Adam(2e-3),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    epochs = options.epochs or epochs
    with console.status(f"Training the network, {epochs} epochs"):
        plain.fit(*train, batch_size=64, epochs=epochs, verbose=0)
    before = plain.predict(test[0], verbose=0)
    print(f"{right(before, test[1]):.2%} of the test images are right.")

    say("2  Exits are trained on it; it stays as it is")
    model = ee.add_exits(
        plain, exits=[0.3, 0.6], block="conv", policy="max_probability"
    )
    model.compile("adam", "branchynet", regime="disjoint")
    epochs = options.exit_epochs or exit_epochs
    with console.status(f"Training the exits, {epochs} epochs"):
        model.fit(*train, batch_size=64, epochs=epochs, verbose=0)
    print(model.exit_table())

    say("3  The threshold is chosen")
    print(
        ee.calibrate(
            model,
            *calibration,
            risk="performance_gap",
            epsilon=options.epsilon or epsilon,
        )
    )
    console.print(pretrained.table(model, *test))
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

    say("What came of it")
    console.print(outcome(model, before, summary, answers, test))
    print(f"Everything is in {options.output}.")


def right(predictions, y):
    return np.mean(predictions.argmax(axis=-1) == y)


def splits(data):
    """Images to train with, to calibrate with, and to test with."""
    if data not in split_inference.SPLITS:
        return pretrained.splits(data)
    return [
        (ee.datasets.normalize(data, x), y)
        for x, y in (
            ee.datasets.load(data, split)
            for split in split_inference.SPLITS[data]
        )
    ]


def network(data, shape, num_classes):
    """A ResNet-8 for digits of both sizes, else a MobileNetV2."""
    if data not in split_inference.SPLITS:
        return pretrained.network(shape, num_classes)
    return ee.backbones.resnet_cifar(8, shape, num_classes)


def chosen_cut(model, link, x):
    """The exit to cut at: planned with this machine for both sides."""
    profile = ee.cost.profile(model, batch_sizes=(1,))
    shares = model.predict_exits(x).exit_shares(len(model.exit_names))
    plan = ee.plan_cut(model, profile, profile, link, exit_rates=shares)
    print(plan)
    if plan.choice != plan.best:
        print(
            "Both sides are this machine, so that nothing is gained by a cut. "
            f"To show two machines, it is cut at {plan.best.name} all the same."
        )
    return plan.best.name


def outcome(model, before, summary, answers, test):
    """The network that it began with, beside the two halves at the end."""
    x, y = test
    undivided = model.predict_exits(x)
    classes = np.argmax([answer["prediction"] for answer in answers], axis=-1)
    exits = np.array([answer["exit"] for answer in answers])
    table = Table("", "accuracy", "relative cost", "bytes up a sample")
    table.add_row(
        "the network, in the cloud",
        f"{right(before, y):.2%}",
        "1.000",
        f"{x[0].size:,} (8-bit image)",
    )
    table.add_row(
        "with exits, on two machines",
        f"{np.mean(classes == y):.2%}",
        f"{model.relative_costs[exits].mean():.3f}",
        f"{summary['bytes_up'] / len(y):,.0f}",
    )
    same = np.mean(classes == undivided.predictions.argmax(axis=-1))
    table.caption = f"{same:.2%} of the answers are those of one piece"
    return table


if __name__ == "__main__":
    main()
