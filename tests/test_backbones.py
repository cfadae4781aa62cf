import math

import keras
import numpy as np
import pytest
from keras import layers

from keras_earlyexit import backbones

# The authors' own counts: multiply-adds by their rules, and parameters without
# the moving statistics of batch normalisation.
AUTHORS_COUNTS = {
    "cifar_20": (
        lambda: backbones.resnet_cifar(20, (32, 32, 3), 10),
        41_407_104,
        272_474,
    ),
    "cifar_44": (
        lambda: backbones.resnet_cifar(44, (32, 32, 3), 10),
        98_718_336,
        661_338,
    ),
    "cifar_110": (
        lambda: backbones.resnet_cifar(110, (32, 32, 3), 10),
        256_324_224,
        1_730_714,
    ),
    "18_tiny_imagenet": (
        lambda: backbones.resnet(18, (64, 64, 3), 200),
        148_809_728,
        11_279_112,
    ),
    "18_mnist": (
        lambda: backbones.resnet(18, (28, 28, 1), 10),
        33_149_440,
        11_175_370,
    ),
}

FACTORIES = {
    "cifar_8": lambda: backbones.resnet_cifar(8, (17, 20, 3), 5),
    "resnet_18": lambda: backbones.resnet(18, (33, 40, 1), 5),
    "resnet_50": lambda: backbones.resnet(50, (33, 40, 1), 5),
    "eenet8": lambda: backbones.eenet8(4, (15, 18, 1), 5),
}


def count_parameters(model):
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


def count_authors_macs(model):
    """Their rules: batch norm 2, ReLU and pooling 1 per element of the input.

    Padding is part of the layer that follows it, as in PyTorch.
    """
    total = 0
    unpadded = {}
    for layer in model.layers:
        if isinstance(layer, layers.InputLayer | layers.Add):
            continue
        source = unpadded.get(id(layer.input), layer.input)
        elements = math.prod(source.shape[1:])
        if isinstance(layer, layers.ZeroPadding2D):
            unpadded[id(layer.output)] = layer.input
        elif isinstance(layer, layers.Conv2D):
            pixels = math.prod(layer.output.shape[1:3])
            total += math.prod(layer.kernel.shape) * pixels
        elif isinstance(layer, layers.Dense):
            total += math.prod(layer.kernel.shape)
        elif isinstance(layer, layers.BatchNormalization):
            total += 2 * elements
        else:
            total += elements
    return total


def randomize(model, rng):
    """Gives batch normalisation something to do."""
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            for weight, center in zip(layer.weights, (1, 0, 0, 1), strict=True):
                value = center + 0.2 * rng.uniform(-1, 1, weight.shape)
                weight.assign(value.astype("float32"))


@pytest.mark.parametrize("name", AUTHORS_COUNTS)
def test_counts_equal_those_of_the_authors(name):
    factory, macs, parameters = AUTHORS_COUNTS[name]
    model = factory()
    assert count_parameters(model) == parameters
    assert count_authors_macs(model) == macs


@pytest.mark.parametrize(
    "depth, parameters",
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)],
)
def test_parameters_of_imagenet_resnets(depth, parameters):
    assert count_parameters(backbones.resnet(depth, (64, 64, 3), 1000)) == (
        parameters
    )


@pytest.mark.parametrize("filters, authors", [(2, 1490), (4, 5332)])
def test_eenet8_parameters_are_the_authors_without_their_exits(
    filters, authors
):
    model = backbones.eenet8(filters, (28, 28, 1), 10)
    exit_0 = (filters + 1) * (10 + 1)
    exit_1 = (2 * filters + 1) * (10 + 1)
    assert count_parameters(model) == authors - exit_0 - exit_1


@pytest.mark.parametrize("name", FACTORIES)
def test_model_is_plain_named_and_reloadable(name, tmp_path):
    model = FACTORIES[name]()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *model.input_shape[1:])).astype("float32")
    y = keras.ops.convert_to_numpy(model(x))
    assert y.shape == (2, 5)
    np.testing.assert_allclose(y.sum(axis=1), 1, atol=1e-5)

    numbers = [
        int(layer.name.removeprefix("block").removesuffix("_out"))
        for layer in model.layers
        if layer.name.endswith("_out")
    ]
    assert numbers == list(range(1, len(numbers) + 1))
    ends = [layer for layer in model.layers if layer.name.endswith("_out")]
    kind = layers.Add if name == "eenet8" else layers.ReLU
    assert all(isinstance(layer, kind) for layer in ends)

    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(again(x)), y)


@pytest.mark.parametrize("name", FACTORIES)
def test_features_equal_pytorch_with_the_same_weights(name):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    model = FACTORIES[name]()
    randomize(model, rng)
    x = rng.normal(size=(3, *model.input_shape[1:])).astype("float32")
    with torch.no_grad():
        expected = TorchTwin(model, torch)(x)
    features = keras.Model(model.input, model.get_layer("head_pool").output)
    y = keras.ops.convert_to_numpy(features(x, training=False))
    assert np.ptp(y, axis=0).max() > 1e-2
    np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(y).max())


class TorchTwin:
    """The authors' forward passes in PyTorch, on weights found by name."""

    def __init__(self, model, torch):
        self.torch = torch
        self.functional = torch.nn.functional
        self.run = self.eenet8 if "eenet8" in model.name else self.resnet
        self.weights = {
            layer.name: [
                torch.tensor(keras.ops.convert_to_numpy(weight))
                for weight in layer.weights
            ]
            for layer in model.layers
            if layer.weights
        }

    def __call__(self, x):
        x = self.torch.tensor(x).permute(0, 3, 1, 2)
        return self.run(x).mean(dim=(2, 3)).numpy()

    def conv(self, x, name, stride=1):
        kernel, *bias = self.weights[name]
        return self.functional.conv2d(
            x,
            kernel.permute(3, 2, 0, 1),
            *bias,
            stride=stride,
            padding=kernel.shape[0] // 2,
        )

    def norm(self, x, name):
        gamma, beta, mean, variance = self.weights[name]
        return self.functional.batch_norm(x, mean, variance, gamma, beta)

    def resnet(self, x):
        is_cifar = self.weights["stem_conv"][0].shape[0] == 3
        x = self.conv(x, "stem_conv", stride=1 if is_cifar else 2)
        x = self.norm(x, "stem_bn").relu()
        if not is_cifar:
            x = self.functional.max_pool2d(x, 3, stride=2, padding=1)
        convolutions = 3 if "block1_conv3" in self.weights else 2
        block = 1
        while f"block{block}_conv1" in self.weights:
            name = f"block{block}"
            # Past the first block, a shortcut with weights means stride 2.
            has_shortcut = f"{name}_shortcut_conv" in self.weights
            stride = 2 if has_shortcut and block > 1 else 1
            y = x
            for i in range(1, convolutions + 1):
                is_strided = i == convolutions - 1
                y = self.conv(y, f"{name}_conv{i}", stride if is_strided else 1)
                y = self.norm(y, f"{name}_bn{i}")
                y = y.relu() if i < convolutions else y
            if has_shortcut:
                x = self.conv(x, f"{name}_shortcut_conv", stride)
                x = self.norm(x, f"{name}_shortcut_bn")
            x = (y + x).relu()
            block += 1
        return x

    def eenet8(self, x):
        x = self.norm(self.conv(x, "stem_conv"), "stem_bn").relu()
        y = self.norm(self.conv(x, "block1_conv1"), "block1_bn1").relu()
        x = self.conv(y, "block1_conv2") + x
        for name in ("block2", "block3"):
            y = self.norm(x, f"{name}_bn1").relu()
            y = self.conv(y, f"{name}_conv1", stride=2)
            y = self.norm(y, f"{name}_bn2").relu()
            y = self.conv(y, f"{name}_conv2")
            x = y + self.conv(x, f"{name}_shortcut_conv", stride=2)
        return self.norm(x, "head_bn").relu()


def test_strides_pad_both_sides_alike():
    model = backbones.resnet(18, (8, 8, 1), 2)
    conv = model.get_layer("stem_conv")
    conv.kernel.assign(np.ones(conv.kernel.shape, "float32"))
    x = np.ones((1, 8, 8, 1), "float32")
    y = keras.ops.convert_to_numpy(keras.Model(model.input, conv.output)(x))
    # Rows -3..3, -1..5, 1..7 and 3..9 of a 7x7 window over rows 0..7.
    np.testing.assert_array_equal(y[0, :, 0, 0], [16, 24, 28, 20])

    pool = model.get_layer("stem_pool")
    stem = keras.Model(model.get_layer("stem_relu").output, pool.output)
    x = np.arange(16, dtype="float32").reshape(1, 4, 4, 1)
    y = keras.ops.convert_to_numpy(stem(np.tile(x, 64)))
    np.testing.assert_array_equal(y[0, :, :, 0], [[5, 7], [13, 15]])


def test_initial_weights_have_the_authors_spread():
    model = backbones.resnet(18, (32, 32, 3), 10)
    kernel = keras.ops.convert_to_numpy(model.get_layer("block8_conv2").kernel)
    assert np.std(kernel) == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.02)
    head = keras.ops.convert_to_numpy(model.get_layer("head").kernel)
    assert np.abs(head).max() == pytest.approx(512**-0.5, rel=0.02)

    model = backbones.eenet8(16, (8, 8, 1), 10)
    layer = model.get_layer("block3_conv2")
    for weight in layer.weights:
        values = np.abs(keras.ops.convert_to_numpy(weight))
        assert 0.9 / 24 < values.max() <= 1 / 24  # fan in 3 * 3 * 64 = 24 ** 2


def test_weights_differ_between_layers_and_follow_the_global_seed():
    kernels = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        model = backbones.resnet_cifar(14, (8, 8, 3), 10)
        for name in ("block1_conv1", "block1_conv2"):
            kernel = model.get_layer(name).kernel
            kernels.append(keras.ops.convert_to_numpy(kernel))
    assert not np.array_equal(kernels[0], kernels[1])
    np.testing.assert_array_equal(kernels[0], kernels[2])
    np.testing.assert_array_equal(kernels[1], kernels[3])


@pytest.mark.parametrize(
    "build, message",
    [
        (
            lambda: backbones.resnet_cifar(21, (32, 32, 3), 10),
            "6n \\+ 2.*Received depth=21 \\(int\\).*Use one of 20",
        ),
        (
            lambda: backbones.resnet_cifar(2, (32, 32, 3), 10),
            "at least 8.*Received depth=2 ",
        ),
        (
            lambda: backbones.resnet_cifar("20", (32, 32, 3), 10),
            "Received depth='20' \\(str\\)",
        ),
        (
            lambda: backbones.resnet(20, (32, 32, 3), 10),
            "one of 18, 34, 50, 101, 152.*Received depth=20 .*resnet_cifar",
        ),
        (
            lambda: backbones.resnet(18, (32, 32), 10),
            "height, width, channels.*Received input_shape=\\(32, 32\\) ",
        ),
        (
            lambda: backbones.resnet(18, (None, None, 3), 10),
            "sizes that are known",
        ),
        (
            lambda: backbones.resnet_cifar(20, 32, 10),
            "Received input_shape=32 \\(int\\)",
        ),
        (
            lambda: backbones.resnet_cifar(20, (32, 32, 3), 1),
            "`num_classes`.*at least 2.*Received num_classes=1 \\(int\\)",
        ),
        (
            lambda: backbones.eenet8(0, (28, 28, 1), 10),
            "`filters`.*Received filters=0 \\(int\\)",
        ),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
