"""Exits on, exits off: the same answers, and nothing of the model changed."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from zoo import LIGHT, NAMES, ZOO, as_numpy, plain_and_early

import keras_earlyexit as ee
from keras_earlyexit import surgery, tasks


def look_of(model, x):
    """All that somebody can see of a model."""
    lines = []
    model.summary(print_fn=lines.append, expand_nested=True)
    return {
        "json": model.to_json(),
        "summary": "\n".join(lines),
        "layers": [(id(layer), layer.name) for layer in model.layers],
        "operations": [id(x) for x in getattr(model, "operations", ())],
        "weights": [(w.path, as_numpy(w).tolist()) for w in model.weights],
        "trainable": [id(weight) for weight in model.trainable_weights],
        "output": as_numpy(model(x)).tolist(),
        "compiled": model.compiled,
        "policies": [layer.dtype_policy.name for layer in model.layers],
    }


def assert_same(one, other):
    np.testing.assert_allclose(
        as_numpy(one), as_numpy(other), rtol=0, atol=1e-6
    )


@pytest.mark.backends
@pytest.mark.parametrize("name", NAMES)
def test_final_is_the_answer_of_the_model(name):
    plain, model = plain_and_early(name)
    x, y = ZOO[name].batch(4)
    outputs = model(x)
    expected = plain(x)
    assert_same(outputs["final"], expected)
    assert model.exit_names == (
        *(f"exit_{i}" for i in range(len(model.exit_layers))),
        "final",
    )
    for exit_name in model.exit_names:
        answer = outputs[exit_name]
        assert answer.shape == expected.shape
        assert keras.backend.standardize_dtype(answer.dtype) == "float32"
        if exit_name != "final":
            confidence = as_numpy(outputs[f"{exit_name}_confidence"])
            assert confidence.shape == (4, 1)
            assert ((confidence > 0) & (confidence < 1)).all()


@pytest.mark.parametrize("name", NAMES)
def test_head_is_that_of_the_model(name):
    entry = ZOO[name]
    _, model = plain_and_early(name)
    activation = {
        "multilabel": "sigmoid",
        "logits": "linear",
        "regression": "linear",
    }.get(name, "softmax")
    assert model.head == tasks.Head(entry.units, activation, entry.task)
    answers = as_numpy(model(entry.batch(4)[0])["exit_0"])
    if activation == "softmax":
        np.testing.assert_allclose(answers.sum(axis=-1), 1, atol=1e-5)
    elif activation == "sigmoid":
        assert ((answers > 0) & (answers < 1)).all()
    else:
        assert not np.allclose(answers.sum(axis=-1), 1, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_the_very_ones_of_the_model(name):
    plain, model = plain_and_early(name)
    shared = {id(weight) for weight in plain.weights}
    assert shared < {id(weight) for weight in model.weights}


@pytest.mark.backends
@pytest.mark.parametrize("name", NAMES)
def test_strip_exits_gives_the_plain_model_back(name):
    plain, model = plain_and_early(name)
    x, _ = ZOO[name].batch(4)
    stripped = ee.strip_exits(model)
    assert type(stripped) is type(keras.Model(plain.inputs, plain.outputs))
    assert_same(stripped(x), plain(x))
    assert stripped.count_params() == plain.count_params()
    assert {id(w) for w in stripped.weights} == {id(w) for w in plain.weights}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_model_is_changed(name):
    entry = ZOO[name]
    x, _ = entry.batch(2)
    plain = entry.build()
    before = look_of(plain, x)

    def refused(**options):
        with pytest.raises((ValueError, TypeError)):
            entry.add_exits(plain, **options)

    def second_block_fails(feature):
        made.append(feature)
        if len(made) == 2:
            raise ValueError("not this one")
        return layers.Dense(3)(layers.Flatten()(feature))

    made = []
    refused(exits=["no_such_layer"])
    refused(exits=40)
    refused(block="no_such_block")
    refused(policy="no_such_policy")
    refused(task="no_such_task")
    if entry.exits != 1:
        refused(block=second_block_fails)
    assert look_of(plain, x) == before
    model = entry.add_exits(plain)
    model.stages[0], model.stages[-1]
    assert look_of(plain, x) == before


@pytest.mark.parametrize("name", LIGHT)
def test_copy_is_independent(name):
    entry = ZOO[name]
    x, _ = entry.batch(4)
    plain = entry.build()
    expected = as_numpy(plain(x))
    model = entry.add_exits(plain, copy=True)
    assert_same(model(x)["final"], expected)
    own = {id(weight) for weight in model.weights}
    assert own.isdisjoint(id(weight) for weight in plain.weights)
    assert model.exit_layers == entry.add_exits(plain).exit_layers
    for weight in model.net.trainable_weights:
        weight.assign(weight + 0.5)
    assert_same(plain(x), expected)


def test_without_copy_training_moves_both():
    entry = ZOO["tabular_mlp"]
    x, y = entry.batch(16)
    plain = entry.build()
    before = as_numpy(plain(x))
    model = entry.add_exits(plain)
    model.compile("sgd", "eenet_v1")
    model.fit(x, y, verbose=0)
    assert np.abs(as_numpy(plain(x)) - before).max() > 1e-4
    assert_same(model(x)["final"], plain(x))


def test_a_compiled_model_with_a_loss_of_its_own_is_copied():
    plain = ZOO["tabular_mlp"].build()
    plain.compile("adam", loss=lambda y_true, y_pred: ops.mean(y_pred))
    model = ee.add_exits(plain, copy=True)
    assert plain.compiled and not model.compiled


def test_name_and_convention():
    plain = ZOO["tabular_mlp"].build()
    assert ee.add_exits(plain).name == "tabular_mlp"
    model = ee.add_exits(plain, name="other", cost="eenets")
    assert (model.name, model.cost) == ("other", "eenets")
    assert model.relative_costs[-1] == 1


def with_head(activation, loss=None, dtype=None):
    inputs = keras.Input((4,))
    x = layers.Dense(4, activation="relu", name="dense")(inputs)
    x = layers.Dense(3, activation=activation, dtype=dtype)(x)
    model = keras.Model(inputs, x, name="small")
    if loss is not None:
        model.compile("sgd", loss=loss)
    return model


@pytest.mark.parametrize(
    "loss, task",
    [
        (keras.losses.CategoricalCrossentropy(True), "classification"),
        (keras.losses.SparseCategoricalCrossentropy(True), "classification"),
        (keras.losses.BinaryCrossentropy(from_logits=True), "multilabel"),
        (keras.losses.Huber(), "regression"),
        ("mean_squared_error", "regression"),
        ("mae", "regression"),
    ],
)
def test_loss_says_what_a_linear_head_answers(loss, task):
    model = ee.add_exits(with_head(None, loss), 1)
    assert model.head == tasks.Head(3, "linear", task)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_task_says_what_a_linear_head_answers(task):
    model = ee.add_exits(with_head(None), 1, task=task)
    assert model.head == tasks.Head(3, "linear", task)


def test_separate_activation_is_found():
    inputs = keras.Input((4,))
    x = layers.Dense(4, name="dense")(inputs)
    x = ops.sigmoid(layers.Dense(3)(x))
    model = keras.Model(inputs, layers.Reshape((3,))(x))
    assert ee.add_exits(model, ["dense"]).head.task == "multilabel"


def test_nested_names_are_found_in_a_pretrained_base():
    base = ZOO["residual_cnn"].build()
    base = keras.Model(base.input, base.get_layer("block2_out").output)
    base.trainable = False
    image = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(base(image, training=False))
    plain = keras.Model(image, layers.Dense(5, "softmax", name="top")(x))
    model = ee.add_exits(plain, ["block0_out", "block1_out"])
    assert model.exit_layers == ("block0_out", "block1_out")
    x = np.ones((2, 8, 8, 3), "float32")
    assert_same(model(x)["final"], plain(x))
    trainable = {w.path for w in model.net.trainable_weights}
    assert not any("block0_conv" in path for path in trainable)
    assert any("top" in path for path in trainable)


def test_final_confidence_of_a_head_with_positions():
    tokens = keras.Input((6, 4))
    x = layers.Dense(4, name="first")(ops.mean(tokens, -1, keepdims=True))
    plain = keras.Model(tokens, layers.Dense(3, "softmax")(x))

    def per_token(feature):
        prediction = layers.Dense(3, "softmax")(feature)
        pooled = layers.GlobalAveragePooling1D()(feature)
        return prediction, layers.Dense(1, "sigmoid")(pooled)

    model = ee.add_exits(plain, ["first"], block=per_token)
    outputs = model.net(np.ones((2, 6, 4), "float32"))
    assert tuple(outputs["exit_0"].shape) == (2, 6, 3)
    assert tuple(outputs["final_confidence"].shape) == (2, 1)


def test_layers_of_a_callable_block_get_names_that_the_model_has_not():
    keras.utils.clear_session()
    inputs = keras.Input((4,))
    x = inputs
    for _ in range(3):
        x = layers.Dense(4)(x)
    plain = keras.Model(inputs, layers.Dense(2, "softmax")(x))
    # Automatic names begin anew, as they do where a model is loaded.
    keras.utils.clear_session()
    model = ee.add_exits(plain, 2, block=lambda x: layers.Dense(8)(x))
    assert model.exit_layers == ("dense", "dense_1")
    names = [layer.name for layer in model.net.layers]
    assert names.count("dense_4") == names.count("dense_5") == 1


class Opaque(layers.Layer):
    """Leaves `keras.ops`, so that nobody can count what it does."""

    def call(self, x):
        return ops.convert_to_tensor(ops.convert_to_numpy(x))

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def test_costs_that_cannot_be_counted_are_named():
    inputs = keras.Input((4,))
    x = Opaque(name="opaque")(layers.Dense(4, name="first")(inputs))
    plain = keras.Model(inputs, layers.Dense(2, "softmax")(x))
    with pytest.warns(UserWarning, match="The cost of opaque could not be"):
        model = ee.add_exits(plain, ["first"])
    assert model.plain_macs == 16 + 8


def two_outputs():
    inputs = keras.Input((4,))
    x = layers.Dense(4)(inputs)
    outputs = [layers.Dense(2, "softmax")(x), layers.Dense(1)(x)]
    return keras.Model(inputs, outputs, name="twin")


def with_lambda():
    inputs = keras.Input((4,))
    x = layers.Lambda(lambda x: 2 * x, name="double")(inputs)
    x = layers.Dense(4)(x)
    return keras.Model(inputs, layers.Dense(2, "softmax")(x))


def with_fixed_batch():
    inputs = keras.Input(batch_shape=(8, 4), name="rows")
    x = layers.Dense(4)(inputs)
    return keras.Model(inputs, layers.Dense(2, "softmax")(x))


def with_taken_name():
    inputs = keras.Input((4,))
    x = layers.Dense(4, name="exit_0")(inputs)
    return keras.Model(inputs, layers.Dense(2, "softmax")(x))


def identity():
    inputs = keras.Input((4,), name="only")
    return keras.Model(inputs, inputs, name="nothing")


def one_layer():
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(2, "softmax")(inputs))


def mlp():
    return ZOO["tabular_mlp"].build()


@pytest.mark.parametrize(
    "build, options, error, message",
    [
        (two_outputs, {}, ValueError, "one output.*'twin' with 2.*outputs"),
        (with_lambda, {}, ValueError, "can be saved.*'double'.*keras.ops"),
        (with_fixed_batch, {}, ValueError, r"batch size.*'rows'.*\(8, 4\)"),
        (identity, {}, ValueError, "computes its output.*'nothing'.*'only'"),
        (one_layer, {}, ValueError, "at least one legal cut.*one operation"),
        (
            lambda: keras.Sequential([layers.Dense(2)], name="new"),
            {},
            ValueError,
            "'new' is not built.*keras.Input",
        ),
        (lambda: "a_file.keras", {}, TypeError, "functional or Seq.*str"),
        (with_taken_name, {"exits": 1}, ValueError, "'exit_0'.*free.*Rename"),
        (mlp, {"exits": ["dense_9"]}, ValueError, "'dense_9'.*mean: dense_2"),
        (mlp, {"exits": ["head"]}, ValueError, "'head'.*own answer.*dense_2"),
        (mlp, {"exits": 4}, ValueError, "at most 3 exits.*exits=4"),
        (mlp, {"placement": "best"}, ValueError, "one of pareto.*'best'"),
        (mlp, {"block": "poool"}, ValueError, "one of pool.*'poool'"),
        (mlp, {"block": 3}, TypeError, "a callable.*block=3 .*int"),
        (mlp, {"policy": "learnt"}, ValueError, "mean 'learned'"),
        (mlp, {"cost": "flops"}, ValueError, "one of macs, eenets.*'flops'"),
        (mlp, {"task": "ranking"}, ValueError, "`task`.*'ranking'"),
        (mlp, {"task": "regression"}, ValueError, "ends in softmax"),
        (lambda: with_head(None), {}, ValueError, "'small'.*from_logits.*task"),
    ],
)
def test_what_cannot_take_exits_is_refused(build, options, error, message):
    with pytest.raises(error, match=message):
        ee.add_exits(build(), **options)


def test_exits_on_exits_are_refused():
    _, model = plain_and_early("tabular_mlp")
    with pytest.raises(TypeError, match="has exits already.*strip_exits"):
        ee.add_exits(model)
    assert ee.add_exits(ee.strip_exits(model), 1).exit_layers == ("dense_0",)


def test_strip_exits_refuses_other_models():
    with pytest.raises(TypeError, match="an EarlyExitModel.*of type Func"):
        ee.strip_exits(mlp())


def test_graph_of_the_exits_is_that_of_the_model():
    plain, model = plain_and_early("residual_cnn")
    own = [call.name for call in surgery.trace(plain).calls]
    assert [call.name for call in model._exits.backbone] == own
