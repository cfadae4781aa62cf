"""Folding batch normalisation away changes no answer."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from zoo import LIGHT, ZOO, as_numpy, plain_and_early

import keras_earlyexit as ee
from keras_earlyexit import call_graph, exit_graph, surgery
from keras_earlyexit.folding import Folded, fold

pytestmark = pytest.mark.backends


def shake(model):
    """Weights and statistics that are nowhere 0 or 1."""
    generator = np.random.default_rng(0)
    for variable in model.weights:
        noise = generator.normal(0.0, 0.1, variable.shape)
        base = 1.0 if "gamma" in variable.path else 0.1
        base = 0.8 if "variance" in variable.path else base
        variable.assign((base + np.abs(noise)).astype("float32"))


def folded_network(model):
    exits = fold(model.exit_graph)
    inputs = keras.tree.map_structure(surgery.input_like, exits.graph.inputs)
    names = list(exits.graph.outputs)
    found = surgery.rerun(
        exits.graph,
        call_graph.pairs(exits.graph.inputs, inputs),
        [exits.graph.outputs[name] for name in names],
    )
    return keras.Model(inputs, dict(zip(names, found, strict=True)))


def count(net):
    """How many layers are folded, and how many are left as they were."""
    calls = exit_graph.read(net).graph.calls
    return tuple(
        sum(isinstance(call.operation, kind) for call in calls)
        for kind in (Folded, layers.BatchNormalization)
    )


@pytest.mark.parametrize("name", LIGHT)
def test_answers_stay(name):
    _, model = plain_and_early(name)
    x, _ = ZOO[name].batch(4)
    folded = folded_network(model)
    for key, value in model.net(x, training=False).items():
        np.testing.assert_allclose(
            as_numpy(folded(x, training=False)[key]),
            as_numpy(value),
            atol=1e-4,
            rtol=1e-4,
        )


KINDS = {
    "conv2d": lambda x: layers.Conv2D(6, 3, strides=2, padding="same")(x),
    "no_bias": lambda x: layers.Conv2D(6, 3, use_bias=False)(x),
    "dilated": lambda x: layers.Conv2D(6, 3, dilation_rate=2)(x),
    "grouped": lambda x: layers.Conv2D(6, 3, groups=2)(x),
    "depthwise": lambda x: layers.DepthwiseConv2D(3, depth_multiplier=2)(x),
    "dense": lambda x: layers.Dense(5)(x),
    "conv1d": lambda x: layers.Conv1D(5, 3)(layers.Reshape((-1, 4))(x)),
    "conv3d": lambda x: layers.Conv3D(5, 3)(layers.Reshape((8, 8, 4, 1))(x)),
}


def hand_made(kind, **options):
    inputs = keras.Input((8, 8, 4))
    x = KINDS[kind](inputs)
    x = layers.BatchNormalization(**options)(x)
    x = layers.Activation("relu", name="relu")(x)
    x = layers.Dense(8)(layers.Flatten()(x))
    outputs = layers.Dense(3, activation="softmax")(x)
    model = ee.add_exits(keras.Model(inputs, outputs), ["relu"])
    shake(model)
    return model


@pytest.mark.parametrize("options", [{}, {"center": False, "scale": False}])
@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_layer_takes_it_in(kind, options):
    model = hand_made(kind, **options)
    folded = folded_network(model)
    assert count(model.net) == (0, 1) and count(folded) == (1, 0)
    x = np.random.default_rng(1).normal(size=(3, 8, 8, 4)).astype("float32")
    for key, value in model.net(x, training=False).items():
        np.testing.assert_allclose(
            as_numpy(folded(x)[key]), as_numpy(value), atol=1e-5
        )


def test_current_weights_answer():
    model = hand_made("conv2d")
    model.policy = ee.policies.get("max_probability", threshold=2.0)
    x = np.random.default_rng(1).normal(size=(3, 8, 8, 4)).astype("float32")
    for _ in range(2):
        expected = ops.convert_to_numpy(model(x)["final"])
        np.testing.assert_allclose(model.predict(x), expected, atol=1e-5)
        for variable in model.weights:
            variable.assign(0.7 * ops.convert_to_numpy(variable) + 0.05)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: layers.BatchNormalization(axis=1)(layers.Conv2D(6, 3)(x)),
        lambda x: layers.BatchNormalization()(
            layers.Conv2D(6, 3, activation="relu")(x)
        ),
        lambda x: layers.BatchNormalization()(layers.ReLU()(x)),
        lambda x: (lambda y: layers.BatchNormalization()(y) + y)(
            layers.Conv2D(6, 3)(x)
        ),
    ],
)
def test_what_does_not_fold_is_left(make):
    inputs = keras.Input((8, 8, 4))
    x = layers.Activation("relu", name="relu")(make(inputs))
    outputs = layers.Dense(3, activation="softmax")(layers.Flatten()(x))
    model = ee.add_exits(keras.Model(inputs, outputs), ["relu"])
    shake(model)
    assert count(folded_network(model)) == (0, 1)
