"""What all figures are of: networks, cut, images, optimizer."""

import dataclasses
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import keras_earlyexit as ee

#: Networks, and the layer that each has its one early exit behind. In
#: ResNet-20 that is the last block but two: there an image is 8x8x64 numbers,
#: most of them zero.
LAYERS = {
    "resnet20": "block7_out",
    "resnet18": "block4_out",
    "vgg16": "pool4",
}
CUT = "exit_0"
BASE, BATCH = "branchynet", 64
LEARNING_RATE = 2e-3
_PAD = 4


@dataclasses.dataclass(frozen=True)
class Start:
    """The network that both sides begin with.

    Args:
        network: One of `LAYERS`.
        layer: What the exit is behind; `None` for that in `LAYERS`.
        block: What reads the feature for the exit: `"conv"`, or a network of
            its own. `"narrowing"`: stride 2 and twice the filters until an
            image is 8 wide, and one convolution more. `"residual"`: stride 2
            until it is 8 wide, and three residual blocks, 4 wide;
            `"residual2x2"`: the same, with kernels of 2x2 before the blocks.
        trained: What `accuracy --way divided` has written; `None` for untrained
            weights.
        leave: Share of images that are to leave at the exit.
        threshold: The score above which they leave, in place of that. With
            neither it stays as it is.
        seed: Of the first weights, and in `accuracy` of all that is drawn.
    """

    network: str = "resnet20"
    layer: str | None = None
    block: str = "conv"
    trained: str | None = None
    leave: float | None = None
    threshold: float | None = None
    seed: int = 0

    @classmethod
    def of(cls, options):
        """That of the command line's options, which are named alike."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(getattr(options, name) for name in names))

    def model(self):
        """The network, the same each time."""
        from keras_earlyexit import snapshots

        model = network(self.network, self.layer, self.block, self.seed)
        if self.trained is not None:
            arrays, _ = snapshots.read(self.trained)
            for segment in ee.split(model, CUT, BASE)[:2]:
                segment.compile(optimizer(1))
                count = len(snapshots.variables_of(segment))
                snapshots.restore(segment, arrays[:count])
                arrays = arrays[count:]
        if self.leave is not None:
            x = normal(images("train[49488:]")[0])
            found = model.net.predict(x, batch_size=256, verbose=0)[CUT]
            # Rounded: both sides have to come to the same number.
            threshold = round(
                float(np.quantile(found.max(-1), 1 - self.leave)), 3
            )
            model.policy.threshold = threshold
        if self.threshold is not None:
            model.policy.threshold = self.threshold
        return model

    def check(self):
        """Ends the program with a sentence if there is no such network."""
        try:
            self.model()
        except (FileNotFoundError, ValueError) as error:
            raise SystemExit(f"hierarchical.py: {error}") from error

    def segments(self, steps):
        """The two segments of the network, compiled."""
        found = ee.split(self.model(), CUT, BASE)
        for segment in found:
            segment.compile(optimizer(steps))
        return found


def network(name="resnet20", layer=None, block="conv", seed=0):
    """An untrained network with one exit, the same each time.

    Args:
        name: One of `LAYERS`.
        layer: What the exit is behind; `None` for that in `LAYERS`.
        block: As for `Start`.
        seed: As for `Start`.
    """
    import keras
    from _recipes import narrowing, residual

    keras.utils.set_random_seed(seed)
    blocks = {
        "narrowing": narrowing(8, 1),
        "residual": residual(4, 64, 3),
        "residual2x2": residual(4, 64, 3, kernel=2),
    }
    shape = (32, 32, 3)
    if name == "vgg16":
        plain = _vgg16(shape)
    elif name == "resnet18":
        plain = ee.backbones.resnet(18, shape, 10)
    else:
        plain = ee.backbones.resnet_cifar(20, shape, 10)
    return ee.add_exits(
        plain,
        [layer or LAYERS[name]],
        block=blocks.get(block, block),
        policy="max_probability",
    )


def _vgg16(shape):
    """VGG-16 as it is used for small images: one dense layer at its end."""
    import keras

    image = x = keras.Input(shape)
    widths = (64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3
    for i, filters in enumerate(widths, start=1):
        for number in filters:
            x = keras.layers.Conv2D(number, 3, padding="same")(x)
            x = keras.layers.BatchNormalization()(x)
            x = keras.layers.ReLU()(x)
        x = keras.layers.MaxPooling2D(name=f"pool{i}")(x)
    x = keras.layers.Flatten()(x)
    outputs = keras.layers.Dense(10, activation="softmax")(x)
    return keras.Model(image, outputs, name="vgg16")


def optimizer(steps=10**9):
    """The optimizer of each part; `steps` is how long it will train."""
    import keras

    return keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    )


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
