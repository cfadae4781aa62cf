"""Layers taken apart: what is found inside, and that nothing is left there."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_earlyexit import ExitBlock, surgery
from keras_earlyexit.cost import opening


class Residual(layers.Layer):
    """Two layers and a sum; a third one is only called if it is told to."""

    def __init__(self, fails=False, calls_spare=False, **kwargs):
        super().__init__(**kwargs)
        self.fails, self.calls_spare = fails, calls_spare
        self.inner = layers.Dense(4, name="inner")
        self.last = layers.Dense(4, name="last")
        self.spare = layers.Dense(4, name="spare")

    def build(self, input_shape):
        self.inner.build(input_shape)
        self.last.build(input_shape)

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, x, training=None):
        y = self.inner(x)
        if self.fails:
            raise RuntimeError("only while the model is built")
        return x + (self.spare(y) if self.calls_spare else self.last(y))


def call_of(layer, *shape):
    """The call of a layer in a model."""
    inputs = keras.Input(shape)
    (call,) = surgery.trace(keras.Model(inputs, layer(inputs))).calls
    return call


def nodes_in(*operations):
    return [
        len(nodes)
        for operation in operations
        for nodes in (operation._inbound_nodes, operation._outbound_nodes)
    ]


def test_parts_are_calls_in_an_order_that_runs():
    call = call_of(Residual(), 4)
    times, calls = opening.parts(call)
    assert times == 1
    assert [x.name for x in calls[:2]] == ["inner", "last"]
    assert [type(x.operation).__name__ for x in calls[2:]] == ["Add"]
    assert calls[1].inputs == calls[0].outputs
    assert {x.shape for x in calls[0].inputs} == {(1, 4)}


@pytest.mark.parametrize("kind", ["pool", "bnpool", "plain", "conv"])
def test_exit_blocks_open(kind):
    _, calls = opening.parts(call_of(ExitBlock(3, kind=kind), 8, 8, 2))
    names = [type(x.operation).__name__ for x in calls]
    assert names[-2:] == ["Dense", "Dense"]
    assert ("GlobalAveragePooling2D" in names) == (kind != "plain")
    assert [x.name for x in calls[-2:]] == [
        "prediction_branch",
        "confidence_branch",
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_opening_leaves_no_nodes(fails):
    layer = Residual(fails=fails)
    call = call_of(layer, 4)
    before = nodes_in(layer, layer.inner, layer.last)
    _, calls = opening.parts(call)
    assert (calls is None) == fails
    assert nodes_in(layer, layer.inner, layer.last) == before


def test_opening_leaves_no_nodes_in_a_model_with_its_own_call():
    class Doubled(keras.Model):
        def call(self, x):
            return super().call(x) * 2

    inputs = keras.Input((4,))
    model = Doubled(inputs, ops.relu(layers.Dense(3, name="dense")(inputs)))
    tensor = keras.KerasTensor((1, 4))
    before = nodes_in(*model.operations)
    calls = surgery.record(model, model.call, (tensor,), {})
    names = [type(x.operation).__name__ for x in calls]
    assert names[-3:] == ["Dense", "Relu", "Multiply"]
    assert nodes_in(*model.operations) == before
    assert model.get_layer("dense").output.shape == (None, 3)


def test_layers_that_are_not_built_stay_so():
    layer = Residual(calls_spare=True)
    call = call_of(layer, 4)
    assert opening.parts(call) == (1, None)
    assert not layer.spare.built and len(layer.weights) == 4
    # And it can be built and called afterwards.
    assert layer(np.ones((2, 4), "float32")).shape == (2, 4)
    assert layer.spare.built


def test_steps_are_counted():
    assert opening.parts(call_of(layers.LSTM(2), 6, 3))[0] == 6
    layer = layers.TimeDistributed(layers.Dense(2, name="each"))
    times, calls = opening.parts(call_of(layer, 6, 3))
    assert times == 6
    assert [x.name for x in calls] == ["each"]


# What surgery.py reads of Keras' private parts for this, one by one.


def test_a_tensor_knows_the_call_behind_it():
    inputs = keras.Input((4,))
    dense = layers.Dense(3)
    first, second = dense(inputs), dense(inputs)
    assert surgery.call_behind(first).outputs == (first,)
    assert surgery.call_behind(second).outputs == (second,)
    assert surgery.call_behind(first).operation is dense
    assert surgery.call_behind(keras.KerasTensor((4,))) is None


def test_a_tensor_does_not_take_a_later_call_for_its_own():
    dense = layers.Dense(4)
    dense.build((None, 4))
    (call,) = surgery.record(dense, dense, (keras.KerasTensor((1, 4)),), {})
    assert surgery.call_behind(call.outputs[0]) is None
    later = dense(keras.Input((4,)))
    assert surgery.call_behind(call.outputs[0]) is None
    assert surgery.call_behind(later).operation is dense


def test_layers_inside_are_found():
    layer = Residual()
    inner = {layer, layer.inner, layer.last, layer.spare}
    assert set(layer._flatten_layers()) == inner


def test_layers_are_built_through_the_method_that_is_shut():
    layer = layers.Dense(2)
    vars(layer)["_maybe_build"] = None
    with pytest.raises(TypeError, match="not callable"):
        layer(keras.Input((3,)))
    del vars(layer)["_maybe_build"]
    assert layer(keras.Input((3,))).shape == (None, 2)


def test_state_that_a_call_changes_is_not_changed():
    class Counts(layers.Layer):
        def build(self, input_shape):
            self.count = self.add_weight(shape=(), initializer="zeros")

        def call(self, x):
            self.count.assign_add(1.0)
            return x * 2

    layer = Counts()
    call = call_of(layer, 4)
    before = float(layer.count.value)
    _, calls = opening.parts(call)
    assert len(calls) == 1
    assert float(layer.count.value) == before
