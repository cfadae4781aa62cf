"""Counts against TensorFlow's profiler, and of networks that are known."""

import math

import keras
import pytest
from cost.functional import functional
from keras import layers

from keras_earlyexit import cost

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="needs TensorFlow, or is slow to build elsewhere",
)


def profiled_macs(model):
    """Half of the floating point operations that TensorFlow's profiler sees."""
    import tensorflow as tf

    signature = [
        tf.TensorSpec((1, *x.shape[1:]), x.dtype) for x in model.inputs
    ]
    graph = tf.function(lambda x: model(x)).get_concrete_function(*signature)
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    profile = tf.compat.v1.profiler.profile(graph.graph, options=options)
    return profile.total_float_ops / 2


@on_tensorflow
@pytest.mark.parametrize(
    "layer, shape",
    [
        (layers.Conv1D(5, 3, use_bias=False), (9, 2)),
        (layers.Conv2D(5, 3, strides=2, use_bias=False), (9, 8, 2)),
        (
            layers.Conv2D(5, 3, 2, padding="same", use_bias=False),
            (9, 8, 2),
        ),
        (layers.DepthwiseConv2D(3, use_bias=False), (9, 8, 4)),
        (layers.SeparableConv2D(5, 3, use_bias=False), (9, 8, 4)),
        (layers.Dense(5, use_bias=False), (4,)),
        (layers.Dense(5, use_bias=False), (3, 4)),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_agrees_with_the_tensorflow_profiler(layer, shape):
    model = functional(layer, shape)
    assert cost.count(model).macs == profiled_macs(model)


@on_tensorflow
def test_whole_network_agrees_with_the_tensorflow_profiler():
    model = keras.applications.MobileNetV2(
        weights=None, input_shape=(96,) * 2 + (3,)
    )
    table = cost.count(model)
    # The profiler adds normalisation and activations to the products.
    assert 1 <= profiled_macs(model) / table.macs < 1.03


def conv_and_dense_macs(model):
    """Multiply-adds by the weights alone: uses of each kernel element."""
    total = 0
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            positions = math.prod(layer.output.shape[1:-1])
            total += positions * math.prod(layer.kernel.shape)
    return total


@on_tensorflow
@pytest.mark.parametrize(
    "make, expected, params",
    [
        (keras.applications.ResNet50, 3_857_973_248, 25_636_712),
        (keras.applications.MobileNetV2, 300_774_272, 3_538_984),
    ],
)
def test_whole_networks(make, expected, params):
    model = make(weights=None)
    table = cost.count(model)
    assert table.macs == expected == conv_and_dense_macs(model)
    assert table.params == params == model.count_params()
    assert table.reliable
    assert len(table.rows) == len(model.layers) - 1
