"""A small model for digits, trained once for all tests of the page."""

import keras
import pytest

import keras_earlyexit as ee


@pytest.fixture(scope="session")
def data():
    """Three parts of a split, as the model gets them; it learns the last."""
    x, y = ee.datasets.load("digits", "test")
    x = ee.datasets.normalize("digits", x)
    return (x[:60], y[:60]), (x[60:200], y[60:200]), (x[200:], y[200:])


@pytest.fixture(scope="session")
def model(data):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = inputs
    for k in range(3):
        x = keras.layers.Conv2D(8, 3, activation="relu", name=f"conv_{k}")(x)
    x = keras.layers.Flatten()(x)
    outputs = keras.layers.Dense(10, activation="softmax")(x)
    made = ee.add_exits(
        keras.Model(inputs, outputs, name="small"),
        ["conv_0", "conv_1"],
        block="plain",
        policy="max_probability",
    )
    made.compile(keras.optimizers.Adam(1e-2), "branchynet")
    made.fit(*data[2], epochs=15, verbose=0)
    # Some leave at each exit.
    made.policy.threshold = 0.6
    return made
