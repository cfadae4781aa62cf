"""Every kind of model becomes a bundle that answers as the model does."""

import keras
import numpy as np
import pytest
import zoo
from bundling import HAS_ONNX

import keras_earlyexit as ee

needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="tf2onnx is missing")
# What differs most for the converters; the others take a minute more.
REPRESENTATIVE = {
    "litert": (
        "sequential_cnn",
        "mixed_precision",
        "nested_functional",
        "siamese",
        "two_inputs_early",
        "masked_transformer",
        "vision_transformer",
        "multilabel",
        "regression",
        "lstm_stack",
    ),
    "saved_model": ("mixed_precision", "two_inputs_early"),
    "onnx": ("vision_transformer", "two_inputs_early", "lstm_stack"),
    "keras": tuple(zoo.ZOO),
}


def cases():
    for format, names in REPRESENTATIVE.items():
        for name in zoo.ZOO:
            marks = [] if name in names else [pytest.mark.long]
            marks += [needs_onnx] if format == "onnx" else []
            yield pytest.param(format, name, marks=marks)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="most formats are written on TensorFlow",
)
@pytest.mark.parametrize("format, name", list(cases()))
def test_every_kind_of_model(format, name, tmp_path):
    _, model = zoo.plain_and_early(name)
    x, _ = zoo.ZOO[name].batch(9)
    report = ee.export(model, tmp_path / "bundle", format=format)
    tolerance = 2e-2 if name == "mixed_precision" else 1e-4
    assert report.largest_difference <= tolerance
    bundle = ee.load_bundle(tmp_path / "bundle")
    answers = model(x)
    found = bundle.all_exits(x)
    for exit_name in model.exit_names:
        np.testing.assert_allclose(
            found[exit_name], zoo.as_numpy(answers[exit_name]), atol=tolerance
        )
    # Between the two middle scores, so that nobody is close.
    middle = [
        float(np.sort(found[f"{exit_name}_score"])[4:6].mean())
        for exit_name in model.exit_names[:-1]
    ]
    result = bundle.predict_exits(x)
    for thresholds in (middle, np.inf, -np.inf):
        bundle.thresholds = thresholds
        result = bundle.predict_exits(x)
        expected = model.router.predict_exits(x, thresholds=bundle.thresholds)
        if tolerance == 1e-4 or thresholds is not middle:
            np.testing.assert_array_equal(
                result.exit_index, expected.exit_index
            )
            np.testing.assert_allclose(
                result.predictions, expected.predictions, atol=tolerance
            )
