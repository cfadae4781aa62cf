"""The objectives as a Keras loss, on a hand-built functional model."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_earlyexit as ee

pytestmark = pytest.mark.backends


@pytest.fixture
def model():
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="tanh")(inputs)
    prediction, confidence = ee.ExitBlock(4)(x)
    x = layers.Dense(8, activation="tanh")(x)
    outputs = {
        "exit_0": prediction,
        "exit_0_confidence": confidence,
        "final": layers.Dense(4, activation="softmax")(x),
    }
    return keras.Model(inputs, outputs)


@pytest.fixture
def data():
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    return x, x[:, :4].argmax(axis=1)


def test_compile_and_fit(model, data):
    loss = ee.losses.EarlyExitLoss("eenet_v2", costs=[0.4, 1.0])
    model.compile(keras.optimizers.Adam(0.02), loss=[loss])
    history = model.fit(*data, epochs=5, verbose=0).history["loss"]
    assert history[-1] < history[0]


def test_equals_the_objective(model, data):
    x, y = data
    outputs = model(x)
    loss = ee.losses.EarlyExitLoss("eenet_v1", costs=[0.4, 1.0])
    parts = ee.objectives.get("eenet_v1")(
        y,
        [outputs["exit_0"], outputs["final"]],
        [outputs["exit_0_confidence"]],
        [0.4, 1.0],
    )
    found, expected = (
        keras.ops.convert_to_numpy(value).item()
        for value in (loss(y, outputs), parts["loss"])
    )
    assert found == pytest.approx(expected)


def test_config_round_trip():
    loss = ee.losses.EarlyExitLoss("eenet_v1", costs=[0.4, 1.0])
    again = ee.losses.EarlyExitLoss.from_config(loss.get_config())
    assert again.get_config() == loss.get_config()


def test_costs_are_needed(model, data):
    loss = ee.losses.EarlyExitLoss("eenet_v2")
    with pytest.raises(ValueError, match="one relative cost for each of the 2"):
        loss(data[1], model(data[0]))
    without = ee.losses.EarlyExitLoss("eenet_v0")
    found = without(data[1], model(data[0]))
    assert keras.ops.convert_to_numpy(found).item() > 0


def test_one_output_is_refused(model, data):
    loss = ee.losses.EarlyExitLoss("eenet_v0")
    with pytest.raises(TypeError, match="Pass the loss in a list"):
        loss(data[1], model(data[0])["final"])
