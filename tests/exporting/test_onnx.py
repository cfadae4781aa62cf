"""ONNX files: what tf2onnx leaves to us."""

import keras
import numpy as np
import pytest
from bundling import FORMATS

import keras_earlyexit as ee

pytestmark = pytest.mark.skipif(
    "onnx" not in FORMATS, reason="tf2onnx is missing, or another backend"
)


def test_plain_tensors_that_layers_hold_are_stored(tmp_path):
    rows = np.random.default_rng(0).normal(3, 2, (40, 6)).astype("float32")
    normalise = keras.layers.Normalization(name="normalise")
    normalise.adapt(rows)
    row = keras.Input((6,), name="row")
    x = keras.layers.Dense(8, activation="tanh", name="dense")(normalise(row))
    outputs = keras.layers.Dense(3, activation="softmax", name="head")(x)
    model = ee.add_exits(keras.Model(row, outputs), ["normalise", "dense"])
    ee.export(model, tmp_path / "bundle", format="onnx", representative=rows)
    found = ee.load_bundle(tmp_path / "bundle").all_exits(rows)
    for name, expected in model(rows).items():
        if name in found:
            np.testing.assert_allclose(found[name], expected, atol=1e-5)


def test_grouped_convolutions(tmp_path):
    images = np.random.default_rng(0).normal(size=(20, 6, 6, 4))
    images = images.astype("float32")
    image = keras.Input((6, 6, 4), name="image")
    x = keras.layers.Conv2D(8, 3, groups=4, name="grouped")(image)
    x = keras.layers.Flatten()(keras.layers.Conv2D(8, 3, name="conv")(x))
    outputs = keras.layers.Dense(3, activation="softmax", name="head")(x)
    model = ee.add_exits(keras.Model(image, outputs), ["grouped"])
    ee.export(model, tmp_path / "bundle", format="onnx", representative=images)
    found = ee.load_bundle(tmp_path / "bundle").all_exits(images)
    for name in model.exit_names:
        expected = model(images)[name]
        np.testing.assert_allclose(found[name], expected, atol=1e-5)
