"""Every architecture of keras.applications answers from a bundle as it is."""

import applications
import keras
import numpy as np
import pytest
from bundling import HAS_ONNX, ON_TENSORFLOW
from zoo import as_numpy

import keras_earlyexit as ee

pytestmark = pytest.mark.skipif(
    not ON_TENSORFLOW, reason="most formats are written on TensorFlow"
)
# The others take many minutes.
REPRESENTATIVE = [("litert", "MobileNetV2"), ("onnx", "MobileNetV2")]
# Its cells take two earlier cells, so that it has few legal cuts.
EXITS = {"NASNetMobile": ["stem_bn1", "normal_concat_12"]}
# Share of the initial statistics that stays. With more of them these fade.
MOMENTUM = {"MobileNetV2": 0.0, "Xception": 0.03}


def cases():
    for name in applications.IMAGE_SIZES:
        for format in ("litert", "saved_model", "onnx", "keras"):
            marks = (
                [] if (format, name) in REPRESENTATIVE else [pytest.mark.long]
            )
            if format == "onnx":
                marks.append(
                    pytest.mark.skipif(
                        not HAS_ONNX, reason="tf2onnx is missing"
                    )
                )
            yield pytest.param(format, name, marks=marks)


def settle(model, x, momentum):
    """Lets batch normalisation take its statistics from some images.

    Without, an untrained network answers all images alike, and every bundle
    would answer as it does. All the way, many architectures turn a rounding
    error of 1e-6 into one of 1e-4, on every backend.
    """
    norms = [
        layer
        for layer in model.net.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = momentum
    model.net(x, training=True)
    for norm, value in zip(norms, before, strict=True):
        norm.momentum = value


@pytest.mark.parametrize("format, name", list(cases()))
def test_answers_from_a_bundle(format, name, tmp_path):
    x = applications.images(name, 16)
    model = ee.add_exits(
        applications.build(name), EXITS.get(name, 2), copy=True
    )
    settle(model, x, MOMENTUM.get(name, 0.1))
    report = ee.export(
        model, tmp_path / "bundle", format=format, representative=x
    )
    assert report.largest_difference <= 1e-4
    answers = {key: as_numpy(value) for key, value in model(x).items()}
    found = ee.load_bundle(tmp_path / "bundle").all_exits(x)
    for exit_name in model.exit_names:
        expected = answers[exit_name]
        assert np.ptp(expected, axis=0).max() > 5e-4, "all answers are alike"
        np.testing.assert_allclose(found[exit_name], expected, atol=1e-4)
