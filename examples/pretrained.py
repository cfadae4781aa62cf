"""Exits for a network that is trained already, which stays as it is.

A backbone of keras.applications gets exits, and only they are trained
(`regime="disjoint"`): the network's own answers stay the same bit by bit. With
`--weights` it starts from a file; otherwise it is trained here first, from
scratch and for a short time, since nothing is downloaded:

    python examples/pretrained.py                           # digits
    python examples/pretrained.py --data tiny_imagenet20
    python examples/pretrained.py --data tiny_imagenet20 --weights my.weights.h5
"""

import argparse
import pathlib

import keras
import numpy as np
from keras import layers
from rich.console import Console
from rich.table import Table

import keras_earlyexit as ee

# Parts of a data set, and the size that its images are brought to.
DATA = {
    "digits": (("train", "calibration", "test"), 32),
    "tiny_imagenet20": (("train[:80%]", "train[80%:]", "validation"), 64),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=sorted(DATA), default="digits")
    parser.add_argument("--weights", help="of the network, a .weights.h5 file")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--exit-epochs", type=int, default=8)
    parser.add_argument(
        "--output", type=pathlib.Path, default="outputs/pretrained"
    )
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    console = Console()
    train, calibration, test = splits(options.data)
    plain = network(train[0].shape[1:], int(train[1].max()) + 1)
    if options.weights:
        plain.load_weights(options.weights)
    else:
        plain.compile(
            keras.optimizers.Adam(1e-3),
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        with console.status(f"Training the network, {options.epochs} epochs"):
            plain.fit(*train, batch_size=64, epochs=options.epochs, verbose=0)
    before = plain.predict(test[0], verbose=0)

    model = ee.add_exits(
        plain, exits=[0.3, 0.6], block="conv", policy="max_probability"
    )
    model.compile("adam", "branchynet", regime="disjoint")
    with console.status(f"Training the exits, {options.exit_epochs} epochs"):
        model.fit(*train, batch_size=64, epochs=options.exit_epochs, verbose=0)
    after = ee.strip_exits(model).predict(test[0], verbose=0)
    same = np.array_equal(before, after)
    console.print(f"The network's own answers are the same: {same}")
    print(
        ee.calibrate(model, *calibration, risk="performance_gap", epsilon=0.03)
    )
    console.print(table(model, *test))
    options.output.mkdir(parents=True, exist_ok=True)
    model.save(options.output / "model.keras")
    console.print(f"Saved {options.output / 'model.keras'}")


def splits(data):
    """Images of the size that the network wants, in three colours."""
    parts, size = DATA[data]
    found = []
    for part in parts:
        x, y = ee.datasets.load(data, part)
        x = ee.datasets.normalize(data, x)
        if x.shape[1] != size:
            x = np.asarray(keras.ops.image.resize(x, (size, size)))
        found.append((np.broadcast_to(x, (*x.shape[:3], 3)), y))
    return found


def network(shape, num_classes):
    """MobileNetV2 at a third of its width, with a head of its own."""
    images = keras.Input(shape, name="image")
    backbone = keras.applications.MobileNetV2(
        shape, alpha=0.35, include_top=False, weights=None
    )
    # Their moving averages have to catch up within a short training.
    for layer in backbone.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.9
    x = layers.GlobalAveragePooling2D()(backbone(images))
    answer = layers.Dense(num_classes, activation="softmax")(x)
    return keras.Model(images, answer)


def table(model, x, y):
    """What each exit gets right alone, and what the routed answers do."""
    seen = ee.calibration.observe(model, x, y)
    result = model.predict_exits(x)
    shares = result.exit_shares(len(model.exit_names))
    rows = Table("", "accuracy", "relative cost", "share that leaves")
    for k, name in enumerate(model.exit_names):
        rows.add_row(
            f"{name} alone",
            f"{seen.exit_accuracies()[k]:.1%}",
            f"{model.relative_costs[k]:.3f}",
            f"{shares[k]:.1%}",
        )
    right = result.predictions.argmax(axis=-1) == y
    rows.add_row("routed", f"{right.mean():.1%}", f"{result.mean_cost:.3f}", "")
    return rows


if __name__ == "__main__":
    main()
