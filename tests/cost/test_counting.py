"""Tables of whole models: nested, shared, subclassed, and their rows."""

import warnings

import keras
import numpy as np
import pytest
from cost.functional import functional
from keras import layers, ops

from keras_earlyexit import backbones, cost, surgery


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
