"""What every kind of layer takes."""

import pytest
from cost.functional import functional, on_list
from keras import layers, ops

from keras_earlyexit import cost

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
