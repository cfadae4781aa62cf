"""What operations outside of layers take."""

import keras
import pytest
from keras import ops

from keras_earlyexit import cost

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
