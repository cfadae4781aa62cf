"""Layers made of others are counted from the inside, or named."""

import keras
import numpy as np
from cost.functional import functional
from keras import layers, ops

from keras_earlyexit import cost, surgery


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


def test_subclass_with_its_own_call_is_not_taken_for_its_ancestor():
    class Twice(layers.Dense):
        def call(self, x):
            return super().call(super().call(x))

    class Renamed(layers.Dense):
        pass

    assert cost.count(functional(Twice(4), (4,))).macs == 32
    assert cost.count(functional(Renamed(4), (4,))).macs == 16
