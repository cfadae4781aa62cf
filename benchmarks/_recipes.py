"""Networks, where they get exits, and how they are trained, for `front.py`."""

import dataclasses
from collections.abc import Callable

import keras
from keras import layers

import keras_earlyexit as ee


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A network with exits, and the plain one, trained alike.

    Args:
        data: Name of the data set.
        splits: Of training, calibration and test.
        network: What builds the plain network.
        exits: Layers that the early exits hang on.
        block: What builds their exit blocks.
        epochs: Passes over the training split, for both.
        before: Passes of the plain network that both go on from.
        after: Passes in which the exits learn on, and nothing else does.
        taught: How much of what the exits learn from is the answer of the
            trained plain network, and not the label.
        optimizer: From the number of steps and of those to warm up in.
    """

    data: str
    splits: tuple
    network: Callable
    exits: tuple
    block: Callable
    epochs: int
    before: int = 0
    after: int = 0
    taught: float = 0.0
    batch: int = 64
    optimizer: Callable = lambda steps, warm: adam(steps)


def adam(steps):
    """Adam, whose rate falls to 0."""
    return keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(2e-3, steps)
    )


def sgd(steps, warm):
    """Nesterov's, whose rate rises to 0.1 and falls to 0."""
    optimizer = keras.optimizers.SGD(
        keras.optimizers.schedules.CosineDecay(
            0.0, steps - warm, warmup_target=0.1, warmup_steps=warm
        ),
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-3,
    )
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    return optimizer


def narrowing(size, more):
    """An exit block that is a small network of its own.

    Convolutions of stride 2 and twice the filters until an image is `size`
    wide, so that they cost little, then `more` of stride 1.
    """

    def block(feature):
        x = feature
        while x.shape[1] > size:
            x = _conv(x, 2 * x.shape[-1], 3, 2)
        for _ in range(more):
            x = _conv(x, x.shape[-1])
        return layers.GlobalAveragePooling2D()(x)

    return block


def separable(size, filters):
    """An exit block as `narrowing`, of half of the multiply-adds and less.

    Each convolution is one per filter and one of size 1. The filters double
    with each stride of 2, to `filters`; one of stride 1 follows.
    """

    def block(feature):
        x = feature
        strides = (feature.shape[1] // size).bit_length() - 1
        for left in reversed(range(strides)):
            x = _separable(x, filters >> left, 2)
        x = _separable(x, filters)
        return layers.GlobalAveragePooling2D()(x)

    return block


def residual(size, filters, blocks, kernel=3):
    """An exit block as `narrowing` that is deeper: a residual network.

    Convolutions of stride 2 until an image is twice `size` wide, whose kernels
    are `kernel` wide, then residual blocks, of which the first has stride 2.
    """

    def block(feature):
        x = feature
        while x.shape[1] > 2 * size:
            x = _conv(x, filters, kernel, 2)
        for number in range(blocks):
            x = _residual(x, filters, 1 if number else 2)
        return layers.GlobalAveragePooling2D()(x)

    return block


def resnet_cifar(depth):
    return lambda: ee.backbones.resnet_cifar(depth, (32, 32, 3), 10)


def narrow_resnet18():
    """ResNet-18 with half of the filters."""
    inputs = keras.Input((64, 64, 3))
    x = _conv(inputs, 32, 7, 2)
    x = layers.MaxPooling2D(3, 2, padding="same")(x)
    for block in range(8):
        filters = 32 << block // 2
        strides = 1 if block % 2 or not block else 2
        x = _residual(x, filters, strides, f"block{block + 1}_out")
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(20, "softmax")(x))


def mobilenet():
    """The smallest MobileNetV2, whose statistics move fast enough."""
    model = keras.applications.MobileNetV2(
        (64, 64, 3), alpha=0.35, weights=None, classes=20
    )
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            # 0.999 is for hundreds of thousands of steps.
            layer.momentum = 0.9
    return model


def _conv(x, filters, size=3, strides=1, relu=True):
    x = layers.Conv2D(
        filters,
        size,
        strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
    )(x)
    x = layers.BatchNormalization(momentum=0.9)(x)
    return layers.ReLU()(x) if relu else x


def _residual(x, filters, strides, name=None):
    y = _conv(x, filters, 3, strides)
    y = _conv(y, filters, relu=False)
    if strides > 1:
        x = _conv(x, filters, 1, strides, relu=False)
    return layers.ReLU(name=name)(layers.Add()([x, y]))


def _separable(x, filters, strides=1):
    x = layers.DepthwiseConv2D(
        3,
        strides,
        padding="same",
        use_bias=False,
        depthwise_initializer="he_normal",
    )(x)
    x = layers.BatchNormalization(momentum=0.9)(x)
    return _conv(x, filters, 1)


_TINY = ("train[:9000]", "train[9000:]", "validation")

_CIFAR10 = Recipe(
    "cifar10",
    ("train[:45000]", "train[45000:]", "test"),
    resnet_cifar(20),
    ("block1_out", "block3_out", "block5_out"),
    separable(8, 128),
    epochs=8,
    after=4,
    batch=128,
    optimizer=sgd,
)
# Exits that come late to a network that is trained already.
_LATE = dataclasses.replace(
    _CIFAR10,
    exits=("block1_out", "block4_out"),
    block=narrowing(8, 1),
    epochs=4,
    before=8,
    after=4,
)

RECIPES = {
    "mnist": Recipe(
        "mnist",
        ("train[:20000]", "train[55000:]", "test"),
        lambda: ee.backbones.resnet_cifar(20, (28, 28, 1), 10),
        # The first has four convolutions of its own.
        ("stem_relu", "block3_out"),
        narrowing(7, 1),
        epochs=3,
    ),
    "cifar10": _CIFAR10,
    "cifar10_taught": dataclasses.replace(_CIFAR10, after=8, taught=0.6),
    "cifar10_late": _LATE,
    "cifar10_deeper": dataclasses.replace(
        _CIFAR10,
        splits=("train[:15000]", "train[45000:]", "test"),
        network=resnet_cifar(44),
        exits=("block3_out", "block8_out", "block13_out"),
        epochs=4,
        after=0,
        batch=64,
    ),
    "svhn": dataclasses.replace(
        _CIFAR10,
        data="svhn_cropped",
        splits=("train[:30000]", "train[68000:]", "test"),
    ),
    "resnet18": Recipe(
        "tiny_imagenet20",
        _TINY,
        narrow_resnet18,
        ("block1_out", "block4_out"),
        narrowing(4, 0),
        epochs=6,
    ),
    "mobilenetv2": Recipe(
        "tiny_imagenet20",
        _TINY,
        mobilenet,
        ("block_1_project_BN", "block_5_add"),
        narrowing(4, 1),
        epochs=8,
    ),
}
