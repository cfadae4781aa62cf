"""Models taken apart: every call found, every legal cut legal, none missed."""

import functools
import pathlib
import re

import keras
import numpy as np
import pytest
from keras import layers, ops
from zoo import NAMES, ZOO, as_numpy, plain_and_early

import keras_earlyexit as ee
from keras_earlyexit import call_graph, cutting, surgery

# Masks go from layer to layer beside the graph.
WITHOUT_MASKS = [name for name in NAMES if "masked" not in name]


@functools.cache
def taken_apart(name):
    model, _ = plain_and_early(name)
    return model, surgery.trace(model)


def model_of(graph):
    return keras.Model(graph.inputs, graph.outputs)


def tail_from(graph, cut):
    """The model behind a cut, from nothing but the tensor there."""
    feature = keras.Input(batch_shape=cut.tensor.shape, dtype=cut.tensor.dtype)
    return keras.Model(
        feature,
        surgery.rerun(
            graph,
            {id(cut.tensor): feature},
            keras.tree.flatten(graph.outputs),
        ),
    )


def inner_model(name, filters=2, layer="conv", channels=2):
    inputs = keras.Input((4, 4, channels))
    x = layers.Conv2D(filters, 3, padding="same", name=layer)(inputs)
    return keras.Model(inputs, x, name=name)


def classifier(inputs, x):
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(2, "softmax", name="head")(x))


@pytest.mark.parametrize("name", NAMES)
def test_every_legal_cut_leaves_a_tail_that_computes_the_same(name):
    _, graph = taken_apart(name)
    x, _ = ZOO[name].batch(4)
    cuts = cutting.legal_cuts(graph)
    cuts = dict.fromkeys([*cuts[:: max(len(cuts) // 4, 1)], *cuts[-1:]])
    features = keras.Model(graph.inputs, [cut.tensor for cut in cuts])(x)
    expected = as_numpy(model_of(graph)(x))
    assert cuts
    for cut, feature in zip(cuts, keras.tree.flatten(features), strict=True):
        (answer,) = keras.tree.flatten(tail_from(graph, cut)(feature))
        np.testing.assert_allclose(
            as_numpy(answer), expected, rtol=0, atol=1e-6, err_msg=cut.name
        )


@pytest.mark.parametrize("name", WITHOUT_MASKS)
def test_legal_cuts_are_all_that_part_the_output_from_the_inputs(name):
    _, graph = taken_apart(name)
    inputs = {id(tensor) for tensor in keras.tree.flatten(graph.inputs)}
    expected = []
    for index, call in enumerate(graph.calls[:-1]):
        tail = call_graph.ancestors(
            graph,
            keras.tree.flatten(graph.outputs),
            until=[id(tensor) for tensor in call.outputs],
        )
        read = {id(tensor) for other in tail for tensor in other.inputs}
        if not read & inputs:
            expected.append((index, call.name, id(call.outputs[0])))
    assert expected == [
        (cut.index, cut.name, id(cut.tensor))
        for cut in cutting.legal_cuts(graph)
    ]


@pytest.mark.backends
@pytest.mark.parametrize("name", NAMES)
def test_traced_model_is_flat_and_computes_the_same(name):
    model, graph = taken_apart(name)
    x, _ = ZOO[name].batch(4)
    assert not any(
        isinstance(call.operation, keras.Model) for call in graph.calls
    )
    keras.tree.assert_same_structure(
        graph.inputs, surgery._functional(model).input
    )
    np.testing.assert_array_equal(
        as_numpy(model_of(graph)(x)), as_numpy(model(x))
    )
    own = {id(weight) for weight in model_of(graph).weights}
    assert own == {id(weight) for weight in model.weights}


@pytest.mark.backends
@pytest.mark.parametrize("name", NAMES)
def test_copy_computes_the_same_with_weights_of_its_own(name):
    model, graph = taken_apart(name)
    copied = surgery.copy(graph)
    assert copied.opened == graph.opened
    copied = model_of(copied)
    x, _ = ZOO[name].batch(4)
    np.testing.assert_array_equal(as_numpy(copied(x)), as_numpy(model(x)))
    weights = {id(weight) for weight in model.weights}
    assert not weights & {id(weight) for weight in copied.weights}
    assert copied.count_params() == model.count_params()
    assert [call.name for call in surgery.trace(copied).calls] == [
        call.name for call in graph.calls
    ]


# What this file alone reads of Keras' private parts, one by one.


def test_private_parts_of_keras_are_read_in_one_file_only():
    package = pathlib.Path(surgery.__file__).parent
    private = re.compile(
        r"^\s*(from|import) keras\.src|\._(functional|nodes_by_depth|"
        r"keras_mask|keras_history|inbound_nodes|outbound_nodes|"
        r"call_context_args|flatten_layers|run_through_graph)\b",
        re.MULTILINE,
    )
    readers = {
        file.name
        for file in package.rglob("*.py")
        if private.search(file.read_text(encoding="utf-8"))
    }
    assert readers == {"surgery.py"}


@pytest.mark.backends
def test_functional_is_the_class_of_models_made_of_tensors():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, layers.Dense(1)(inputs))
    assert isinstance(model, surgery.Functional)


@pytest.mark.backends
def test_nodes_by_depth_hold_all_calls_in_an_order_that_runs():
    model = ZOO["shared_layer"].build()
    graph = surgery._read(model)
    seen = {id(tensor) for tensor in model.inputs}
    for call in graph.calls:
        assert all(id(tensor) in seen for tensor in call.inputs)
        seen |= {id(tensor) for tensor in call.outputs}
    assert {call.operation for call in graph.calls} == {
        operation
        for operation in model.operations
        if not isinstance(operation, layers.InputLayer)
    }
    names = [call.name for call in graph.calls]
    assert names.count("shared") == 6


@pytest.mark.backends
def test_functional_of_a_sequential_exists_once_it_is_built():
    model = keras.Sequential([layers.Dense(2), layers.Dense(1)])
    assert surgery._functional(model) is None
    model.build((None, 3))
    assert len(surgery.trace(model).calls) == 2


@pytest.mark.backends
def test_mask_of_a_tensor_is_seen():
    tokens = keras.Input((4,), dtype="int32")
    x = layers.Embedding(9, 3, mask_zero=True, name="embedding")(tokens)
    x = layers.LSTM(2, return_sequences=True, name="lstm_0")(x)
    x = layers.LSTM(2, name="lstm_1")(x)
    x = layers.Dense(4, name="dense")(x)
    graph = surgery.trace(keras.Model(tokens, layers.Dense(2)(x)))
    by_name = {call.name: call for call in graph.calls}
    assert len(surgery.masks_made(by_name["embedding"])) == 1
    assert len(surgery.masks_read(by_name["lstm_1"])) == 1
    assert not surgery.masks_read(by_name["dense"])
    names = [cut.name for cut in cutting.legal_cuts(graph)]
    assert names == ["lstm_1", "dense"]
    assert cutting.tensors_alive(graph, "lstm_0") == [
        "lstm_0",
        "the mask of lstm_0",
    ]


class Composite(layers.Layer):
    """Not registered, and without an argument `training`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(2)
        self.dropout = layers.Dropout(0.5, seed=0)

    def build(self, shape):
        self.dense.build(shape)
        self.built = True

    def call(self, x):
        return self.dropout(self.dense(x))


def model_with_composite(training=None):
    inside = keras.Input((50,))
    nested = keras.Model(inside, Composite(name="composite")(inside))
    inputs = keras.Input((50,))
    x = nested(inputs, training=training)
    return keras.Model(inputs, layers.Dense(2, "softmax", name="head")(x))


@pytest.mark.parametrize("training", [True, False])
def test_training_argument_of_a_nested_call_reaches_all_layers(training):
    graph = surgery.trace(model_with_composite(training))
    assert graph.calls[0].name == "composite"
    x = np.ones((4, 50), "float32")
    first = keras.Model(graph.inputs, graph.calls[0].outputs)
    has_zeros = bool((as_numpy(first(x)[0]) == 0).any())
    assert has_zeros is training


@pytest.mark.backends
def test_copy_keeps_the_layers_inside_a_layer():
    graph = surgery.trace(model_with_composite())
    graph.calls[0].operation.dense.trainable = False
    copied = surgery.copy(graph)
    inner = copied.calls[0].operation.dense
    assert not inner.trainable
    np.testing.assert_array_equal(
        as_numpy(inner.kernel),
        as_numpy(graph.calls[0].operation.dense.kernel),
    )


@pytest.mark.backends
def test_copy_keeps_what_a_normalization_has_adapted_to():
    rows = np.random.default_rng(0).normal(5, 3, (50, 4)).astype("float32")
    normalization = layers.Normalization()
    normalization.adapt(rows)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(normalization(inputs)))
    copied = model_of(surgery.copy(surgery.trace(model)))
    np.testing.assert_array_equal(as_numpy(copied(rows)), as_numpy(model(rows)))


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="strings need TensorFlow"
)
def test_copy_keeps_a_vocabulary():
    split = layers.TextVectorization(output_sequence_length=3)
    split.adapt(["a good film", "a bad film"])
    inputs = keras.Input((1,), dtype="string")
    x = layers.Flatten()(layers.Embedding(9, 2)(split(inputs)))
    model = keras.Model(inputs, layers.Dense(2)(x))
    copied = model_of(surgery.copy(surgery.trace(model)))
    x = ops.convert_to_tensor([["good film"], ["bad bad"]])
    np.testing.assert_array_equal(as_numpy(copied(x)), as_numpy(model(x)))


@pytest.mark.backends
def test_call_behind_a_tensor_is_the_one_that_made_it():
    inputs = keras.Input((4,))
    shared = layers.Dense(4, name="shared")
    first = shared(inputs)
    second = shared(first)
    call = surgery.call_behind(second)
    assert call.operation is shared
    assert call.inputs == (first,) and call.outputs == (second,)
    assert surgery.call_behind(keras.KerasTensor((1,))) is None


def test_recording_a_layer_leaves_no_note_in_it():
    layer = Composite()
    layer.build((None, 4))
    notes = layer.dense._inbound_nodes, layer.dropout._inbound_nodes
    before = [list(nodes) for nodes in notes]
    calls = surgery.record(layer, layer.call, (keras.KerasTensor((1, 4)),), {})
    assert [call.operation for call in calls] == [layer.dense, layer.dropout]
    assert [list(nodes) for nodes in notes] == before


# Nested models.


def test_nested_models_are_opened_up_to_the_innermost():
    graph = surgery.trace(ZOO["nested_functional"].build())
    names = [call.name for call in graph.calls]
    assert "base" not in names
    assert names.count("unit_conv") == 6
    cuts = [cut.name for cut in cutting.legal_cuts(graph)]
    assert cuts.count("unit_add") == 3
    assert "unit_bn" not in cuts


def test_nested_models_with_equal_layer_names_stay_closed_with_a_warning():
    inputs = keras.Input((4, 4, 2))
    x = inner_model("left")(inputs)
    x = inner_model("right")(x)
    x = inner_model("other", layer="other_conv")(x)
    model = classifier(inputs, x)
    with pytest.warns(UserWarning, match=r"\['left', 'right'\].*same layer"):
        graph = surgery.trace(model)
    names = [call.name for call in graph.calls]
    assert names == ["left", "right", "other_conv", "pool", "head"]
    with pytest.warns(UserWarning, match="stay one operation each") as said:
        net = ee.add_exits(model, exits=["left", "other_conv"])
    assert len(said) == 1
    x = np.ones((2, 4, 4, 2), "float32")
    np.testing.assert_array_equal(as_numpy(net(x)["final"]), as_numpy(model(x)))


def test_one_nested_model_called_twice_is_opened_twice():
    inputs = keras.Input((4, 4, 2))
    base = inner_model("base")
    graph = surgery.trace(classifier(inputs, base(base(inputs))))
    names = [call.name for call in graph.calls]
    assert names == ["conv", "conv", "pool", "head"]
    assert graph.calls[0].operation is graph.calls[1].operation


def test_nested_model_gets_its_inputs_by_name():
    left, right = keras.Input((3,), name="z"), keras.Input((3,), name="a")
    base = keras.Model([left, right], layers.Dense(3, name="d")(left) - right)
    inputs = [keras.Input((3,)), keras.Input((3,))]
    model = keras.Model(inputs, base({"z": inputs[0], "a": inputs[1]}))
    graph = surgery.trace(model)
    assert graph.calls[0].name == "d"
    x = [np.full((1, 3), value, "float32") for value in (1, 5)]
    np.testing.assert_array_equal(
        as_numpy(model_of(graph)(x)), as_numpy(model(x))
    )


def test_nested_model_that_casts_its_input_is_opened_with_the_cast():
    inputs = keras.Input((4, 4, 2), dtype="uint8")
    model = classifier(inputs, inner_model("base")(inputs))
    graph = surgery.trace(model)
    assert [call.name for call in graph.calls][1:] == ["conv", "pool", "head"]
    x = np.full((1, 4, 4, 2), 7, "uint8")
    np.testing.assert_array_equal(
        as_numpy(model_of(graph)(x)), as_numpy(model(x))
    )


def test_nested_model_that_adds_an_axis_stays_one_call():
    inside = keras.Input((4, 1))
    base = keras.Model(inside, layers.Flatten()(inside), name="base")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2, name="head")(base(inputs)))
    graph = surgery.trace(model)
    assert [call.name for call in graph.calls] == ["base", "head"]
    x = np.ones((1, 4), "float32")
    np.testing.assert_array_equal(
        as_numpy(model_of(graph)(x)), as_numpy(model(x))
    )


def test_nested_model_with_a_call_of_its_own_stays_one_call():
    @keras.saving.register_keras_serializable(package="surgery_tests")
    class Doubled(keras.Model):
        def call(self, x):
            return 2 * super().call(x)

    inputs = keras.Input((4, 4, 2))
    base = Doubled(inputs, layers.Conv2D(2, 1, name="inside")(inputs))
    outer = keras.Input((4, 4, 2))
    graph = surgery.trace(classifier(outer, base(outer)))
    first, *rest = graph.calls
    assert first.operation is base
    assert [call.name for call in rest] == ["pool", "head"]


# Parts.


def test_second_input_is_alive_until_it_is_read():
    graph = surgery.trace(ZOO["two_inputs_late"].build())
    names = [cut.name for cut in cutting.legal_cuts(graph)]
    assert names == ["join", "late_dense"]
    assert cutting.tensors_alive(graph, "conv_1") == ["numbers", "conv_1"]
    assert cutting.tensors_alive(graph, "no_such_layer") is None


def test_ancestors_and_producer_follow_the_calls():
    graph = surgery.trace(ZOO["residual_cnn"].build())
    by_name = {call.name: call for call in graph.calls}
    (tensor,) = by_name["block0_add"].outputs
    found = call_graph.ancestors(graph, [tensor])
    assert by_name["stem"] in found and by_name["block0_bn2"] in found
    assert by_name["block0_out"] not in found
    (stem,) = by_name["stem_relu"].outputs
    found = call_graph.ancestors(graph, [tensor], until=[id(stem)])
    assert by_name["stem"] not in found and by_name["block0_bn2"] in found
    assert call_graph.producer(graph, tensor) is by_name["block0_add"]
    assert call_graph.producer(graph, graph.inputs) is None


def test_an_operation_with_two_outputs_is_a_cut_where_one_of_them_is_read():
    def names_of_cuts(build):
        inputs = keras.Input((4,))
        x = layers.Dense(4, name="first")(inputs)
        outputs = layers.Dense(2, name="last")(build(*ops.split(x, 2, axis=1)))
        graph = surgery.trace(keras.Model(inputs, outputs))
        return [cut.name for cut in cutting.legal_cuts(graph)]

    assert len(names_of_cuts(lambda one, other: one)) == 2
    both = names_of_cuts(lambda one, other: ops.maximum(one, other))
    assert len(both) == 2 and not any("split" in name for name in both)


def test_calls_that_the_output_does_not_need_are_left_out():
    inputs = keras.Input((4,))
    x = layers.Dense(4, name="used")(inputs)
    layers.Dense(4, name="unused")(x)
    graph = surgery.trace(keras.Model(inputs, layers.Dense(2)(x)))
    assert "unused" not in [call.name for call in graph.calls]


def test_what_has_no_graph_is_refused():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    class OwnCall(keras.Sequential):
        def call(self, x, training=None):
            return super().call(x, training=training)

    with pytest.raises(TypeError, match="functional or Sequential.*Subclassed"):
        surgery.trace(Subclassed())
    with pytest.raises(TypeError, match="`call` of its own.*keras.Model"):
        surgery.trace(OwnCall([keras.Input((2,)), layers.Dense(1)]))
    with pytest.raises(TypeError, match="Received: 'resnet' .*of type str"):
        surgery.trace("resnet")
    with pytest.raises(ValueError, match="'empty' is not built.*keras.Input"):
        surgery.trace(keras.Sequential([layers.Dense(1)], name="empty"))
