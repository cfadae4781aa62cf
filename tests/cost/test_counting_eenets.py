"""Counts in the convention of the EENets authors."""

import keras
import pytest
from cost.functional import functional
from keras import layers, ops

from keras_earlyexit import backbones, cost

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="needs TensorFlow, or is slow to build elsewhere",
)


def test_counts_as_the_eenets_authors_small():
    table = cost.count(backbones.resnet_cifar(20, (32, 32, 3), 10), "eenets")
    assert (table.macs, table.params) == (41_407_104, 272_474)


CIFAR, RESNET = backbones.resnet_cifar, backbones.resnet


@on_tensorflow
@pytest.mark.parametrize(
    "make, arguments, expected, params",
    [
        (CIFAR, (44, (32, 32, 3), 10), 98_718_336, 661_338),
        (CIFAR, (110, (32, 32, 3), 10), 256_324_224, 1_730_714),
        (RESNET, (18, (64, 64, 3), 200), 148_809_728, 11_279_112),
        (RESNET, (18, (28, 28, 1), 10), 33_149_440, 11_175_370),
    ],
)
def test_counts_as_the_eenets_authors(make, arguments, expected, params):
    table = cost.count(make(*arguments), "eenets")
    assert (table.macs, table.params) == (expected, params)
    assert table.reliable


EENETS = {
    "conv_with_bias": (
        lambda x: layers.Conv2D(5, 3)(x),
        7 * 6 * 5 * 18 + 7 * 6 * 5,
    ),
    "conv_without_bias": (
        lambda x: layers.Conv2D(5, 3, use_bias=False)(x),
        7 * 6 * 5 * 18,
    ),
    "conv_with_relu": (
        lambda x: layers.Conv2D(5, 3, activation="relu")(x),
        7 * 6 * 5 * 18 + 2 * 7 * 6 * 5,
    ),
    "dense_without_its_bias": (lambda x: layers.Dense(5)(x), 72 * 2 * 5),
    "batch_norm": (lambda x: layers.BatchNormalization()(x), 2 * 144),
    "layer_norm": (lambda x: layers.LayerNormalization()(x), 0),
    "relu_layer": (lambda x: layers.ReLU()(x), 144),
    "relu_activation": (lambda x: layers.Activation("relu")(x), 144),
    "relu_operation": (lambda x: ops.relu(x), 144),
    "sigmoid": (lambda x: layers.Activation("sigmoid")(x), 0),
    "softmax": (lambda x: layers.Softmax()(x), 0),
    "add": (lambda x: layers.Add()([x, x]), 0),
    "max_pooling": (lambda x: layers.MaxPooling2D(3, 2)(x), 144),
    "average_pooling": (lambda x: layers.AveragePooling2D(2)(x), 144),
    "global_pooling": (lambda x: layers.GlobalAveragePooling2D()(x), 144),
    "pooling_operation": (lambda x: ops.max_pool(x, 2), 144),
    "padded_pooling": (
        lambda x: layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x)),
        144,
    ),
}


@pytest.mark.parametrize("function, expected", EENETS.values(), ids=EENETS)
def test_eenets_convention(function, expected):
    x = keras.Input((9, 8, 2))
    table = cost.count(keras.Model(x, function(x)), "eenets")
    assert table.macs == expected
    assert table.reliable


def test_eenets_convention_has_no_place_for_attention():
    layer = layers.MultiHeadAttention(2, 3, name="attention")
    table = cost.count(functional(layer, (5, 8), (5, 8)), "eenets")
    assert table.uncounted == ("attention",)
