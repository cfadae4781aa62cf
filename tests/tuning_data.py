"""A network and data that are searched in seconds."""

import keras

from keras_earlyexit import datasets


def build():
    """A small network with three block ends."""
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(x)
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(
        inputs, keras.layers.Dense(10, activation="softmax")(x), name="tiny"
    )


def digits(split):
    x, y = datasets.load("digits", split)
    return datasets.normalize("digits", x), y


def few():
    """300 digits and their labels."""
    return digits("train[:300]")
