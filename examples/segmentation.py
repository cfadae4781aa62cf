"""Early exits for a network that says of each pixel what it belongs to.

Up to four of scikit-learn's handwritten digits are laid on a canvas; a pixel
with ink belongs to the class of its digit, the others to the background. Every
exit answers at all pixels. A canvas leaves where its pixels are sure enough,
and what "its pixels" means is the policy's `reduce`:

    python examples/segmentation.py          # under a minute
"""

import argparse

import keras
import numpy as np
from keras import layers
from rich.console import Console
from rich.table import Table

import keras_earlyexit as ee

BACKGROUND = 10
CELL, GRID, INK = 20, 2, 5
EPOCHS, BATCH = 9, 32


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    epochs = parser.parse_args().epochs
    keras.utils.set_random_seed(0)
    console = Console()
    # Digits may be used again to train, but a threshold that is to hold needs
    # canvases that have nothing in common.
    train = canvases("train", times=4, seed=0)
    calibration = canvases("calibration", times=1, seed=1)
    test = canvases("test", times=1, seed=2)
    console.print(
        f"{len(train[0])} canvases to train on, {len(calibration[0])} for "
        f"thresholds, {len(test[0])} to test"
    )
    model = ee.add_exits(
        network(),
        exits=["block1_out", "block3_out"],
        block="dense",
        policy="max_probability",
    )
    steps = epochs * -(-len(train[0]) // BATCH)
    schedule = keras.optimizers.schedules.CosineDecay(5e-3, steps)
    model.compile(keras.optimizers.Adam(schedule), "eenet_v0")
    with console.status(f"Training for {epochs} epochs"):
        model.fit(*train, batch_size=BATCH, epochs=epochs, verbose=0)
    console.print(exits_table(model, *test))
    console.print(routed_table(model, calibration, test))


def canvases(split, times, seed):
    """Canvases (n, 40, 40, 1), and a class for each of their pixels."""
    images, digits = ee.datasets.load("digits", split)
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(digits)) for _ in range(times)])
    size = CELL * GRID
    x, y = [], []
    while len(order):
        cells = rng.permutation(GRID**2)[: rng.integers(1, GRID**2 + 1)]
        x.append(np.zeros((size, size, 1), "uint8"))
        y.append(np.full((size, size), BACKGROUND))
        for cell, i in zip(cells, order, strict=False):
            image = images[i].repeat(2, axis=0).repeat(2, axis=1)
            room = CELL - len(image) + 1
            corner = CELL * np.array(divmod(cell, GRID))
            top, left = corner + rng.integers(0, room, 2)
            here = np.s_[top : top + len(image), left : left + len(image)]
            x[-1][here] = image
            y[-1][here] = np.where(image[..., 0] >= INK, digits[i], BACKGROUND)
        order = order[len(cells) :]
    return ee.datasets.normalize("digits", np.stack(x)), np.stack(y)


def network():
    """A stem of half the size, residual blocks, and back to the whole size."""
    image = keras.Input((CELL * GRID, CELL * GRID, 1))
    x = layers.Conv2D(16, 5, 2, "same", activation="relu")(image)
    for i in range(6):
        y = layers.Conv2D(16, 3, padding="same", use_bias=False)(x)
        y = layers.BatchNormalization()(y)
        y = layers.ReLU()(y)
        y = layers.Conv2D(16, 3, padding="same", use_bias=False)(y)
        y = layers.BatchNormalization()(y)
        x = layers.ReLU(name=f"block{i}_out")(layers.Add()([x, y]))
    x = layers.Conv2D(BACKGROUND + 1, 1)(x)
    x = layers.UpSampling2D(2, interpolation="bilinear")(x)
    return keras.Model(image, layers.Softmax()(x), name="segmenter")


def exits_table(model, x, y):
    """What every exit gets right if it answers for all canvases."""
    seen = ee.calibration.observe(model, x, y)
    table = Table(
        *("exit", "relative cost", "pixels", "ink"),
        title="Every exit for all canvases: what is right",
    )
    for i, name in enumerate(model.exit_names):
        right = seen.answers(i) == y
        table.add_row(
            name,
            f"{model.relative_costs[i]:.3f}",
            f"{right.mean():.2%}",
            f"{right[y != BACKGROUND].mean():.2%}",
        )
    return table


def routed_table(model, calibration, test):
    """Thresholds for a pixel accuracy at most 1 point lower, on average."""
    x, y = test
    table = Table(
        *("reduce", "threshold", "mean cost", "pixels", "ink"),
        *model.exit_names,
        title="Routed: what is right, and the share that leaves at each exit",
    )
    for reduce in ("mean", 0.1, "min"):
        model.policy = ee.policies.get("max_probability", reduce=reduce)
        report = ee.calibrate(
            model,
            *calibration,
            risk="performance_gap",
            epsilon=0.01,
            method="crc",
        )
        result = model.predict_exits(x)
        right = result.predictions.argmax(axis=-1) == y
        table.add_row(
            str(reduce),
            f"{report.threshold:.4f}",
            f"{result.mean_cost:.3f}",
            f"{right.mean():.2%}",
            f"{right[y != BACKGROUND].mean():.2%}",
            *(f"{share:.1%}" for share in result.exit_shares(3)),
        )
    return table


if __name__ == "__main__":
    main()
