"""What a manifest says of where a model was cut."""

import keras
import numpy as np
import pytest

import keras_earlyexit as ee


@pytest.fixture(scope="module")
def model():
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Rescaling(1 / 255, name="scaled")(image)
    normalise = keras.layers.Normalization(axis=-1, name="normal")
    normalise.adapt(np.arange(64.0).reshape(1, 8, 8, 1))
    x = keras.layers.BatchNormalization(name="batch")(normalise(x))
    x = keras.layers.AveragePooling2D(2, name="pooled")(x)
    x = keras.layers.Conv2D(2, 3, name="conv")(x)
    x = keras.layers.ReLU(name="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(3, activation="softmax", name="head")(x)
    plain = keras.Model(image, outputs, name="small")
    names = ["scaled", "pooled", "conv", "relu"]
    return ee.add_exits(plain, names, policy="max_probability")


def test_a_cut_before_the_first_weights_is_raw(model, tmp_path):
    cuts = [f"exit_{i}" for i in range(4)]
    ee.export(model, tmp_path / "cut", format="keras", cut=cuts)
    found = [
        ee.load_bundle(tmp_path / "cut" / f"segment_{i}").manifest.raw_cut
        for i in range(5)
    ]
    assert found == [True, True, False, False, False]


def test_a_bundle_that_is_not_cut_is_not_raw(model, tmp_path):
    ee.export(model, tmp_path / "whole", format="keras")
    assert not ee.load_bundle(tmp_path / "whole").manifest.raw_cut
