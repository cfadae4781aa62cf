import math
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_earlyexit import backbones, cost, surgery

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="needs TensorFlow, or is slow to build elsewhere",
)


def functional(layer, *shapes, dtype="float32", **kwargs):
    inputs = [keras.Input(shape, dtype=dtype) for shape in shapes]
    outputs = layer(*inputs, **kwargs)
    return keras.Model(inputs[0] if len(inputs) == 1 else inputs, outputs)


def on_list(layer):
    """Lets a layer that takes a list be called on separate tensors."""
    return lambda *tensors: layer(list(tensors))


# Multiply-adds, written as output elements times what each of them takes.
LAYERS = {
    "conv1d": (lambda: layers.Conv1D(5, 3), [(9, 2)], 7 * 5 * 6),
    "conv2d": (lambda: layers.Conv2D(5, 3), [(9, 8, 2)], 7 * 6 * 5 * 18),
    "conv2d_same_strides": (
        lambda: layers.Conv2D(5, 3, strides=2, padding="same"),
        [(9, 8, 2)],
        5 * 4 * 5 * 18,
    ),
    "conv2d_dilated": (
        lambda: layers.Conv2D(5, 3, dilation_rate=2),
        [(9, 8, 2)],
        5 * 4 * 5 * 18,
    ),
    "conv2d_groups": (
        lambda: layers.Conv2D(6, (3, 1), groups=2),
        [(9, 8, 4)],
        7 * 8 * 6 * 6,
    ),
    "conv2d_channels_first": (
        lambda: layers.Conv2D(5, 3, data_format="channels_first"),
        [(2, 9, 8)],
        7 * 6 * 5 * 18,
    ),
    "conv3d": (lambda: layers.Conv3D(2, 3), [(5, 5, 4, 3)], 18 * 2 * 81),
    "conv1d_causal": (
        lambda: layers.Conv1D(5, 3, padding="causal"),
        [(9, 2)],
        9 * 5 * 6,
    ),
    "depthwise1d": (lambda: layers.DepthwiseConv1D(3), [(9, 2)], 7 * 2 * 3),
    "depthwise2d": (
        lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
        [(9, 8, 2)],
        7 * 6 * 4 * 9,
    ),
    "separable2d": (
        lambda: layers.SeparableConv2D(5, 3, depth_multiplier=2),
        [(9, 8, 2)],
        7 * 6 * (4 * 9 + 4 * 5),
    ),
    "transposed2d": (
        lambda: layers.Conv2DTranspose(5, 3, strides=2, padding="same"),
        [(4, 6, 2)],
        4 * 6 * 2 * 9 * 5,
    ),
    "dense": (lambda: layers.Dense(5), [(4,)], 4 * 5),
    "dense_on_steps": (lambda: layers.Dense(5), [(3, 4)], 3 * 4 * 5),
    "einsum_dense": (
        lambda: layers.EinsumDense(
            "abc,cde->abde", (None, 2, 5), bias_axes="de"
        ),
        [(3, 4)],
        3 * 4 * 10,
    ),
    "einsum_dense_dots": (
        lambda: layers.EinsumDense("...x,xy->...y", output_shape=5),
        [(3, 2, 4)],
        6 * 4 * 5,
    ),
    "einsum_dense_two_sums": (
        lambda: layers.EinsumDense("abcd,cde->abe", (None, 5)),
        [(3, 2, 4)],
        3 * 8 * 5,
    ),
    "embedding": (lambda: layers.Embedding(10, 4), [(3,)], 0),
    "self_attention": (
        lambda: lambda x: layers.MultiHeadAttention(2, 3)(x, x),
        [(5, 8)],
        4 * 5 * 8 * 6 + 2 * 5 * 5 * 6,
    ),
    "cross_attention": (
        lambda: layers.MultiHeadAttention(2, 3, value_dim=4),
        [(5, 8), (7, 6)],
        5 * 8 * 6 + 7 * 6 * 6 + 7 * 6 * 8 + 5 * 7 * 2 * (3 + 4) + 5 * 8 * 8,
    ),
    "attention_with_dropout": (
        lambda: layers.MultiHeadAttention(2, 3, dropout=0.1),
        [(5, 8), (7, 8)],
        2 * 5 * 8 * 6 + 2 * 7 * 8 * 6 + 5 * 7 * 12,
    ),
    "attention_over_two_axes": (
        lambda: layers.MultiHeadAttention(2, 3, attention_axes=(1, 2)),
        [(4, 5, 8), (4, 5, 8)],
        4 * 20 * 8 * 6 + 20 * 20 * 12,
    ),
    "attention_over_second_axis": (
        lambda: layers.MultiHeadAttention(2, 3, attention_axes=(2,)),
        [(4, 5, 8), (4, 5, 8)],
        4 * 20 * 8 * 6 + 4 * 5 * 5 * 12,
    ),
    "grouped_query_attention": (
        lambda: layers.GroupQueryAttention(3, 4, 2),
        [(5, 8), (7, 8)],
        2 * 5 * 8 * 12 + 2 * 7 * 8 * 6 + 5 * 7 * 4 * 6,
    ),
    "attention": (
        lambda: on_list(layers.Attention(use_scale=True)),
        [(5, 8), (7, 3), (7, 8)],
        5 * 7 * (8 + 3),
    ),
    "additive_attention": (
        lambda: on_list(layers.AdditiveAttention()),
        [(5, 8), (7, 8)],
        5 * 7 * (8 + 8),
    ),
    "additive_attention_without_scale": (
        lambda: on_list(layers.AdditiveAttention(use_scale=False)),
        [(5, 8), (7, 8)],
        5 * 7 * 8,
    ),
    "batch_dot": (
        lambda: on_list(layers.Dot(axes=-1)),
        [(5, 8), (7, 8)],
        5 * 7 * 8,
    ),
    "simple_rnn": (
        lambda: layers.SimpleRNN(4),
        [(6, 3)],
        6 * 4 * (3 + 4),
    ),
    "lstm": (
        lambda: layers.LSTM(4, return_sequences=True),
        [(6, 3)],
        6 * 16 * (3 + 4),
    ),
    "gru": (lambda: layers.GRU(4), [(6, 3)], 6 * 12 * (3 + 4)),
    "bidirectional": (
        lambda: layers.Bidirectional(layers.LSTM(4)),
        [(6, 3)],
        2 * 6 * 16 * (3 + 4),
    ),
    "stacked_cells": (
        lambda: layers.RNN([layers.LSTMCell(4), layers.GRUCell(5)]),
        [(6, 3)],
        6 * (16 * (3 + 4) + 15 * (4 + 5)),
    ),
    "own_cell": (lambda: layers.RNN(OwnCell(4)), [(6, 3)], 6 * 4 * (3 + 4)),
    "conv_lstm1d": (
        lambda: layers.ConvLSTM1D(2, 3, padding="same"),
        [(6, 5, 3)],
        6 * 5 * 8 * 3 * (3 + 2),
    ),
    "conv_lstm2d": (
        lambda: layers.ConvLSTM2D(2, 3),
        [(6, 5, 4, 3)],
        6 * 6 * 8 * 9 * (3 + 2),
    ),
    "time_distributed": (
        lambda: layers.TimeDistributed(layers.Conv2D(5, 3)),
        [(6, 9, 8, 2)],
        6 * 7 * 6 * 5 * 18,
    ),
    "time_distributed_lstm": (
        lambda: layers.TimeDistributed(layers.LSTM(4)),
        [(2, 6, 3)],
        2 * 6 * 16 * (3 + 4),
    ),
    "spectral_normalization": (
        lambda: layers.SpectralNormalization(layers.Conv2D(5, 3)),
        [(9, 8, 2)],
        7 * 6 * 5 * 18,
    ),
    "tied_embedding": (
        lambda: lambda x: ReversibleHead(10, 4)(x),
        [(3,)],
        3 * 4 * 10,
    ),
    "up_sampling": (lambda: layers.UpSampling2D(2), [(4, 4, 2)], 0),
    "resizing": (lambda: layers.Resizing(3, 3), [(4, 4, 2)], 0),
    "augmentation": (lambda: layers.RandomFlip(), [(4, 4, 2)], 0),
    "group_norm": (lambda: layers.GroupNormalization(2), [(4, 4, 2)], 0),
}


class OwnCell(layers.Layer):
    def __init__(self, units):
        super().__init__()
        self.units = self.state_size = units

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units))
        self.recurrent = self.add_weight(shape=(self.units, self.units))

    def call(self, inputs, states):
        h = ops.tanh(inputs @ self.kernel + states[0] @ self.recurrent)
        return h, [h]


class ReversibleHead(layers.Layer):
    def __init__(self, tokens, dim):
        super().__init__()
        self.embedding = layers.ReversibleEmbedding(tokens, dim)

    def build(self, input_shape):
        self.embedding.build(input_shape)

    def call(self, tokens):
        return self.embedding(self.embedding(tokens), reverse=True)


@pytest.mark.parametrize("make, shapes, expected", LAYERS.values(), ids=LAYERS)
def test_macs_of_layers(make, shapes, expected):
    model = functional(make(), *shapes)
    table = cost.count(model)
    assert table.macs == expected
    assert table.params == model.count_params()
    assert table.reliable and table.uncounted == ()


OPERATIONS = {
    "matmul": (lambda x, w: x @ w, (3, 4), (4, 5), 3 * 4 * 5),
    "matmul_broadcast": (ops.matmul, (2, 3, 4), (4, 5), 6 * 4 * 5),
    "dot": (ops.dot, (3, 4), (4, 5), 3 * 4 * 5),
    "tensordot": (
        lambda x, w: ops.tensordot(x, w, axes=2),
        (3, 4),
        (3, 4, 5),
        12 * 5,
    ),
    "einsum": (
        lambda x, w: ops.einsum("bij,jk->bik", x, w),
        (3, 4),
        (4, 5),
        3 * 4 * 5,
    ),
    "einsum_sums_first": (
        lambda x, w: ops.einsum("bij,jk->bk", x, w),
        (3, 4),
        (4, 5),
        4 * 5,
    ),
    "einsum_implicit": (
        lambda x, w: ops.einsum("...j,jk", x, w),
        (3, 4),
        (4, 5),
        3 * 4 * 5,
    ),
    "einsum_elementwise": (
        lambda x, w: ops.einsum("bij,ij->bij", x, w),
        (3, 4),
        (3, 4),
        0,
    ),
    "conv": (ops.conv, (9, 8, 2), (3, 3, 2, 5), 7 * 6 * 5 * 18),
    "depthwise_conv": (
        ops.depthwise_conv,
        (9, 8, 2),
        (3, 3, 2, 2),
        7 * 6 * 4 * 9,
    ),
    "conv_transpose": (
        lambda x, w: ops.conv_transpose(x, w, strides=2),
        (4, 6, 2),
        (3, 3, 5, 2),
        4 * 6 * 2 * 9 * 5,
    ),
    "multiply": (lambda x, w: x * w, (3, 4), (3, 4), 0),
}


@pytest.mark.parametrize(
    "function, shape, weight_shape, expected",
    OPERATIONS.values(),
    ids=OPERATIONS,
)
def test_macs_of_operations(function, shape, weight_shape, expected):
    weight = ops.ones(weight_shape)
    inputs = keras.Input(shape)
    table = cost.count(keras.Model(inputs, function(inputs, weight)))
    assert table.macs == expected
    assert table.reliable


def test_separable_conv_and_attention_operations():
    x = keras.Input((9, 8, 2))
    out = ops.separable_conv(x, ops.ones((3, 3, 2, 2)), ops.ones((1, 1, 4, 5)))
    assert cost.count(keras.Model(x, out)).macs == 7 * 6 * (4 * 9 + 4 * 5)
    q, k = keras.Input((5, 2, 3)), keras.Input((7, 2, 3))
    out = ops.dot_product_attention(q, k, k)
    assert cost.count(keras.Model([q, k], out)).macs == 5 * 7 * 2 * 6


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


@pytest.mark.parametrize(
    "layer, expected",
    [
        (layers.Conv2D(5, 3), 7 * 6 * 5),
        (layers.Conv2D(5, 3, use_bias=False), 0),
        (layers.Conv2D(5, 3, activation="gelu"), 2 * 7 * 6 * 5),
        (layers.BatchNormalization(), 144),
        (layers.Activation("linear"), 0),
        (layers.MaxPooling2D(2), 144),
        (layers.Flatten(), 0),
        (layers.Rescaling(1 / 255), 144),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_elementwise_ops(layer, expected):
    table = cost.count(functional(layer, (9, 8, 2)))
    assert table.elementwise_ops == expected


def test_shared_layer_has_its_parameters_once():
    shared = layers.Dense(4, name="shared")
    x = keras.Input((4,))
    table = cost.count(keras.Model(x, shared(shared(x))))
    assert [row.name for row in table.rows] == ["shared", "shared"]
    assert [row.params for row in table.rows] == [20, 0]
    assert table.macs == 32


def test_nested_models_are_opened_into_rows():
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(5, name="a"), layers.Dense(4)]
    )
    outer = functional(inner, (4,))
    head = layers.Dense(3, name="head")(inner(outer.output))
    table = cost.count(keras.Model(outer.input, head))
    assert [row.name for row in table.rows].count("a") == 2
    assert table.macs == 2 * (20 + 20) + 12
    assert table.params == inner.count_params() + 15


def test_nested_models_that_cannot_be_opened_are_one_row_each():
    def tower():
        x = keras.Input((4,))
        return keras.Model(x, layers.Dense(5, name="same")(x))

    x = keras.Input((4,))
    model = keras.Model(x, layers.Add()([tower()(x), tower()(x)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = cost.count(model)
    assert table.macs == 40 and table.params == 50 and table.reliable


class Block(layers.Layer):
    """A residual block with a spare layer and arithmetic of its own."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(filters, 3, padding="same")
        self.norm = layers.BatchNormalization()
        self.drop = layers.Dropout(0.5)
        self.never_called = layers.Dense(7)

    def build(self, input_shape):
        self.conv.build(input_shape)
        self.norm.build((*input_shape[:-1], self.conv.filters))
        self.scale = self.add_weight(shape=(), name="scale")
        self.steps = self.add_weight(
            shape=(), trainable=False, initializer="zeros", name="steps"
        )

    def call(self, x, training=None):
        self.steps.assign_add(1.0)
        y = self.norm(self.conv(x), training=training)
        y = ops.reshape(y, (-1, x.shape[-1]))
        y = ops.reshape(y @ ops.ones((x.shape[-1], 2)), (-1, *x.shape[1:]))
        return x + self.drop(y, training=training) * self.scale


def test_composite_layer_is_counted_from_the_inside():
    model = functional(Block(2, name="block"), (9, 8, 2))
    table = cost.count(model)
    assert table.macs == 72 * 2 * 18 + 72 * 2 * 2
    assert table.params == model.count_params() == 38 + 8 + 1 + 1
    assert table.reliable
    (call,) = surgery.trace(model).calls
    inner = cost.inner_calls(call)
    names = [type(inner_call.operation).__name__ for inner_call in inner]
    assert names.index("Conv2D") < names.index("BatchNormalization")
    assert sum(cost.call_cost(x).macs for x in inner) == table.macs


def test_counting_leaves_no_trace():
    block = Block(2)
    model = functional(block, (9, 8, 2))
    x = np.ones((1, 9, 8, 2), "float32")
    before = ops.convert_to_numpy(model(x))
    state = [ops.convert_to_numpy(w).tolist() for w in model.weights]
    nodes = [len(block.conv._inbound_nodes), len(block._inbound_nodes)]
    config = model.get_config()
    cost.count(model)
    assert config == model.get_config()
    assert state == [ops.convert_to_numpy(w).tolist() for w in model.weights]
    assert nodes == [len(block.conv._inbound_nodes), len(block._inbound_nodes)]
    assert not block.never_called.built
    np.testing.assert_array_equal(before, ops.convert_to_numpy(model(x)))


class Opaque(layers.Layer):
    """Does something that no symbolic tensor can go through."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], 3))

    def call(self, x):
        return ops.convert_to_tensor(ops.convert_to_numpy(x)) @ self.kernel

    def compute_output_spec(self, x):
        return keras.KerasTensor((*x.shape[:-1], 3), x.dtype)


class AroundOpaque(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)
        self.opaque = Opaque(name="opaque")

    def build(self, input_shape):
        self.dense.build(input_shape)
        self.opaque.build((*input_shape[:-1], 4))

    def call(self, x):
        return self.opaque(self.dense(x))

    def compute_output_spec(self, x):
        return self.opaque.compute_output_spec(x)


def test_opaque_layer_is_named():
    x = keras.Input((4,))
    out = layers.Dense(2)(Opaque(name="opaque")(x))
    table = cost.count(keras.Model(x, out))
    assert not table.reliable
    assert table.uncounted == ("opaque",)
    assert [row.reliable for row in table.rows] == [False, True]
    assert (table.macs, table.params) == (6, 12 + 8)
    assert "opaque ?" in str(table)


def test_opaque_layer_inside_a_block_is_named():
    table = cost.count(functional(AroundOpaque(name="block"), (4,)))
    assert table.uncounted == ("block/opaque",)
    assert table.macs == 16


class WeightFromTheLeft(layers.Layer):
    """Keras has no symbolic product of a weight with a tensor."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), name="scale")

    def call(self, x):
        return self.scale * ops.matmul(x, ops.ones((4, 4)))


def test_layer_with_a_weight_on_the_left_is_named():
    table = cost.count(functional(WeightFromTheLeft(name="scaled"), (4,)))
    assert table.uncounted == ("scaled",)
    assert (table.macs, table.params) == (0, 1)


def test_lambda_layers():
    known = layers.Lambda(lambda x: ops.matmul(x, ops.ones((4, 5))))
    assert cost.count(functional(known, (4,))).macs == 20
    opaque = layers.Lambda(
        lambda x: ops.ones((1, 4)) * ops.convert_to_numpy(x),
        output_shape=(4,),
        name="opaque",
    )
    assert cost.count(functional(opaque, (4,))).uncounted == ("opaque",)


@pytest.mark.parametrize(
    "function, name",
    [
        (lambda x: ops.fft((x, x))[0], "fft"),
        (lambda x: ops.qr(x)[0], "qr"),
        (lambda x: ops.reshape(x, (-1, 4)), "reshape"),
    ],
)
def test_operations_without_a_formula_are_named(function, name):
    x = keras.Input((4, 4))
    (uncounted,) = cost.count(keras.Model(x, function(x))).uncounted
    assert uncounted.startswith(name)


def test_unknown_sizes_are_named():
    x = keras.Input((None, None, 3))
    y = layers.Conv2D(4, 3, name="conv")(x)
    y = layers.GlobalAveragePooling2D(name="pool")(y)
    table = cost.count(keras.Model(x, layers.Dense(5)(y)))
    assert table.uncounted == ("conv", "pool")
    assert table.macs == 20
    assert [row.output_bytes for row in table.rows] == [0, 0, 20]


def test_axes_that_keras_leaves_open_are_filled_in():
    x = keras.Input((6, 4))
    y = layers.EinsumDense("abc,cd->abd", output_shape=(None, 5))(x)
    table = cost.count(keras.Model(x, layers.Dense(3)(layers.ReLU()(y))))
    assert table.macs == 6 * (4 * 5 + 5 * 3)
    assert [row.output_bytes for row in table.rows] == [120, 120, 72]


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4, name="dense")
        self.head = layers.Dense(2, name="head")
        self.net = self.head

    def build(self, input_shape):
        self.dense.build(input_shape)
        self.head.build((*input_shape[:-1], 4))
        self.offset = self.add_weight(shape=(2,))

    def call(self, x):
        return self.head(self.dense(x)) + self.offset


def test_subclassed_model():
    model = Subclassed()
    model(np.ones((2, 3), "float32"))
    table = cost.count(model)
    assert [row.name for row in table.rows][:2] == ["dense", "head"]
    assert table.macs == 12 + 8
    assert table.params == model.count_params()
    assert table.reliable


def test_functional_model_with_a_call_of_its_own():
    class Doubled(keras.Model):
        def __init__(self):
            x = keras.Input((4,))
            super().__init__(x, layers.Dense(3)(x))

        def call(self, x):
            return super().call(x) @ ops.ones((3, 2))

    table = cost.count(Doubled())
    assert (table.macs, table.params) == (12 + 6, 15)
    assert table.reliable


def test_layers_alone():
    dense = layers.Dense(3)
    dense.build((None, 4))
    assert cost.count(dense).macs == 12
    attention = layers.MultiHeadAttention(2, 3)
    attention.build((None, 5, 8), (None, 5, 8))
    assert cost.count(attention).macs == 4 * 5 * 8 * 6 + 2 * 5 * 5 * 6


def test_model_with_exits_counts_its_net():
    class WithExits(Subclassed):
        exit_names = ("exit_0", "final")

    model = WithExits()
    model.net = functional(layers.Dense(3), (4,))
    assert cost.count(model).macs == 12


def test_fixed_batch_size_is_divided_out():
    x = keras.Input(batch_shape=(8, 6, 3))
    model = keras.Model(x, layers.LSTM(4)(x))
    (row,) = cost.count(model).rows
    assert (row.macs, row.output_bytes) == (6 * 16 * 7, 16)


@pytest.mark.parametrize(
    "dtype, size", [("float32", 4), ("mixed_float16", 2), ("bfloat16", 2)]
)
def test_output_bytes_follow_the_compute_dtype(dtype, size):
    x = keras.Input((9, 8, 2))
    y = layers.Conv2D(5, 3, dtype=dtype)(x)
    z = [y, layers.Flatten(dtype=dtype)(y)]
    rows = cost.count(keras.Model(x, z)).rows
    assert [row.output_bytes for row in rows] == [210 * size] * 2


def test_subclass_with_its_own_call_is_not_taken_for_its_ancestor():
    class Twice(layers.Dense):
        def call(self, x):
            return super().call(super().call(x))

    class Renamed(layers.Dense):
        pass

    assert cost.count(functional(Twice(4), (4,))).macs == 32
    assert cost.count(functional(Renamed(4), (4,))).macs == 16


def test_table_is_readable():
    model = backbones.resnet_cifar(8, (32, 32, 3), 10)
    table = cost.count(model)
    text = str(table)
    assert {len(line) <= 80 for line in text.splitlines()} == {True}
    assert text.splitlines()[-1].split()[:5] == [
        "total",
        "32",
        "calls",
        "12.50",
        "M",
    ]
    assert len(repr(table)) < 100
    with pytest.raises(AttributeError):
        table.rows = ()


def test_errors_say_what_to_do():
    model = functional(layers.Dense(2), (3,))
    with pytest.raises(ValueError, match="macs, eenets.*'flops'.*str.*Use"):
        cost.count(model, "flops")
    with pytest.raises(ValueError, match="convention"):
        cost.call_cost(surgery.trace(model).calls[0], None)
    with pytest.raises(TypeError, match="Received: model=3 .*int.*Pass"):
        cost.count(3)
    with pytest.raises(ValueError, match="not built.*Call it once"):
        cost.count(Subclassed())
    with pytest.raises(ValueError, match="not built"):
        cost.count(keras.Sequential([layers.Dense(2)]))
