"""What all figures are of: the network, its cut, its images, its optimizer."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import keras_earlyexit as ee

#: One early exit, behind the last block but two: there an image is 8x8x64
#: numbers, most of them zero.
CUT_LAYER, CUT = "block7_out", "exit_0"
BASE, BATCH, SEED = "branchynet", 64, 0
LEARNING_RATE = 2e-3
_PAD = 4


def network():
    """The network, the same each time."""
    import keras

    keras.utils.set_random_seed(SEED)
    plain = ee.backbones.resnet_cifar(20, (32, 32, 3), 10)
    return ee.add_exits(
        plain, [CUT_LAYER], block="conv", policy="max_probability"
    )


def optimizer(steps=10**9):
    """The optimizer of each part; `steps` is how long it will train."""
    import keras

    return keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    )


def segments(steps):
    """The two segments, compiled."""
    found = ee.split(network(), CUT, BASE)
    for segment in found:
        segment.compile(optimizer(steps))
    return found


def images(split):
    """Images as they are stored, and labels."""
    return ee.datasets.load("cifar10", split)


def normal(x):
    """Images as the network takes them."""
    return ee.datasets.normalize("cifar10", x)


def augment(x, rng):
    """Shifts and flips stored images, then normalises them."""
    _, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (_PAD, _PAD), (_PAD, _PAD), (0, 0)))
    top, left = rng.integers(0, 2 * _PAD + 1, (2, len(x), 1))
    rows, columns = top + np.arange(height), left + np.arange(width)
    samples = np.arange(len(x))[:, None, None]
    x = padded[samples, rows[:, :, None], columns[:, None, :]]
    is_flipped = rng.random((len(x), 1, 1, 1)) < 0.5
    return normal(np.where(is_flipped, x[:, :, ::-1], x))


def trained(path, leave=None):
    """The network as `accuracy --way divided` has it so far.

    Args:
        path: What it has written; `None` for untrained weights.
        leave: Share of images that are to leave at the exit; `None` leaves
            the threshold as it is.
    """
    from keras_earlyexit import snapshots

    model = network()
    if path is not None:
        arrays, _ = snapshots.read(path)
        for segment in ee.split(model, CUT, BASE)[:2]:
            segment.compile(optimizer(1))
            count = len(snapshots.variables_of(segment))
            snapshots.restore(segment, arrays[:count])
            arrays = arrays[count:]
    if leave is not None:
        x = normal(images("train[49488:]")[0])
        score = model.net.predict(x, batch_size=256, verbose=0)[CUT].max(-1)
        # Rounded: both sides have to come to the same number.
        threshold = round(float(np.quantile(score, 1 - leave)), 3)
        model.policy.threshold = threshold
    return model
