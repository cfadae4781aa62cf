"""A network and data for the tests of the command."""

import keras
import numpy as np


def network(input_shape, num_classes):
    x = inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(x)
    for i in range(3):
        x = keras.layers.Dense(16, activation="relu", name=f"hidden_{i}")(x)
    outputs = keras.layers.Dense(num_classes, activation="softmax")(x)
    return keras.Model(inputs, outputs, name="small")


def needs_more(depth, input_shape):
    raise AssertionError("It is not to be called.")


def no_model():
    return "a model"


def data():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 120)
    x = rng.normal(size=(120, 6)) + 3 * np.eye(3)[y].repeat(2, axis=1)
    return x.astype("float32"), y
