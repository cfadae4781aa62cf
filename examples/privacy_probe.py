"""What do features tell about the input? A probe that tries to get it back.

When a network is cut, features cross the cut in place of inputs. For each
possible cut a decoder is trained to rebuild the input from them, as somebody
would who reads along and has data like yours. The table says how well it does
on images that it has not seen: a correlation of 1 is the input itself.

    python examples/privacy_probe.py         # about two minutes
    python examples/privacy_probe.py --model demo/model.keras --data mnist
"""

import argparse
import pathlib

import keras
import numpy as np
from keras import layers
from rich.console import Console
from rich.progress import track
from rich.table import Table

import keras_earlyexit as ee

SPLITS = {
    "digits": ("train", "test"),
    "mnist": ("train[:10000]", "test[:2000]"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=sorted(SPLITS), default="digits")
    parser.add_argument("--model", help="a trained model.keras of the data")
    parser.add_argument("--epochs", type=int, default=20, help="of the decoder")
    parser.add_argument(
        "--output", type=pathlib.Path, default="outputs/privacy"
    )
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    train, test = (
        (ee.datasets.normalize(options.data, x), y)
        for x, y in (
            ee.datasets.load(options.data, split)
            for split in SPLITS[options.data]
        )
    )
    model = (
        keras.models.load_model(options.model)
        if options.model
        else trained(train)
    )
    table = Table(
        *("cut behind", "feature, bytes", "input, bytes", "correlation"),
        title="How much of the input can be rebuilt from what crosses",
    )
    pictures = {"the input": test[0]}
    names = model.exit_names[:-1]
    for name in track(names, "Training a decoder for each cut"):
        edge, _ = ee.partition(model, name)
        seen, unseen = (features(edge, x) for x in (train[0], test[0]))
        rebuilt = rebuild(seen, train[0], unseen, options.epochs)
        table.add_row(
            name,
            str(seen[0].nbytes),
            # As uint8, which is how images are stored.
            str(test[0][0].size),
            f"{correlation(rebuilt, test[0]):.3f}",
        )
        pictures[f"from {name}"] = rebuilt
    Console().print(table)
    draw(pictures, options.output / "rebuilt.png")


def trained(train):
    """A small network with three exits."""
    shape, num_classes = train[0].shape[1:], int(train[1].max()) + 1
    model = ee.add_exits(
        ee.backbones.resnet_cifar(14, shape, num_classes),
        exits=3,
        placement="even",
        block="plain",
    )
    model.compile(keras.optimizers.Adam(2e-3), "branchynet")
    model.fit(*train, batch_size=64, epochs=6, verbose=0)
    return model


def features(edge, x):
    """What crosses, batch by batch."""
    found = [
        np.asarray(edge(x[i : i + 256])["feature"])
        for i in range(0, len(x), 256)
    ]
    return np.concatenate(found)


def rebuild(seen, x, unseen, epochs):
    """Trains a decoder from features to inputs, and uses it on unseen ones."""
    height, width, channels = x.shape[1:]
    feature = keras.Input(seen.shape[1:])
    y = layers.BatchNormalization()(feature)
    y = layers.Conv2D(64, 3, padding="same", activation="relu")(y)
    y = layers.Conv2D(64, 3, padding="same", activation="relu")(y)
    y = layers.Flatten()(y)
    y = layers.Dense(256, activation="relu")(y)
    y = layers.Dense(height * width * channels)(y)
    decoder = keras.Model(feature, layers.Reshape(x.shape[1:])(y))
    decoder.compile(keras.optimizers.Adam(1e-3), "mean_squared_error")
    decoder.fit(seen, x, batch_size=64, epochs=epochs, verbose=0)
    return decoder.predict(unseen, verbose=0)


def correlation(rebuilt, x):
    """Mean over the images of the correlation of their pixels."""
    a, b = (z.reshape(len(z), -1) for z in (rebuilt, x))
    a, b = (z - z.mean(axis=1, keepdims=True) for z in (a, b))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / norms).mean())


def draw(pictures, path, count=8):
    """A row of images for the input, and one for each cut."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        *(len(pictures), count),
        figsize=(count, len(pictures) + 0.3),
        squeeze=False,
    )
    for row, (name, images) in zip(axes, pictures.items(), strict=True):
        row[0].set_title(name, loc="left", fontsize=9)
        for axis, image in zip(row, images[:count], strict=True):
            axis.imshow(image.squeeze(), cmap="gray")
            axis.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    print(f"Saved {path}")


if __name__ == "__main__":
    main()
