"""Temperature scaling."""

import numpy as np
import pytest

from keras_earlyexit.calibration import (
    apply_temperature,
    expected_calibration_error,
    fit_temperature,
    top_label,
)


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def calibrated(n=4000, num_classes=5, seed=0):
    """Logits whose softmax is the true distribution of the labels."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(n, num_classes))
    cumulative = softmax(logits).cumsum(axis=1)
    labels = (generator.random((n, 1)) > cumulative).sum(axis=1)
    return logits, np.minimum(labels, num_classes - 1)


def test_closed_form_for_two_classes():
    # Right in 3 of 4 cases: sigmoid(margin / T) = 3 / 4.
    for margin in (0.5, 4.0, 40.0):
        logits = np.tile([margin, 0.0], (8, 1))
        temperature = fit_temperature(logits, [0, 0, 0, 1] * 2)
        assert isinstance(temperature, float)
        assert temperature == pytest.approx(margin / np.log(3), rel=1e-5)


@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_finds_the_scale_of_the_logits(scale):
    logits, labels = calibrated()
    assert fit_temperature(scale * logits, labels) == pytest.approx(
        scale * fit_temperature(logits, labels), rel=1e-5
    )
    assert fit_temperature(logits, labels) == pytest.approx(1.0, abs=0.05)


def test_no_temperature_is_better():
    logits, labels = calibrated(seed=1)
    best = fit_temperature(3 * logits, labels)

    def loss(temperature):
        probabilities = apply_temperature(3 * logits, temperature)
        return -np.log(probabilities[np.arange(4000), labels]).mean()

    for factor in (0.5, 0.99, 1.01, 2.0):
        assert loss(best) < loss(factor * best)


def test_log_probabilities_are_logits():
    logits, labels = calibrated(seed=2)
    probabilities = softmax(2 * logits)
    assert fit_temperature(np.log(probabilities), labels) == pytest.approx(
        fit_temperature(2 * logits, labels), rel=1e-5
    )
    np.testing.assert_allclose(
        apply_temperature(np.log(probabilities), 1.0), probabilities
    )


def test_repairs_confidence_and_keeps_the_answers():
    logits, labels = calibrated(seed=3)
    before = softmax(4 * logits)
    after = apply_temperature(4 * logits, fit_temperature(4 * logits, labels))
    np.testing.assert_array_equal(before.argmax(axis=1), after.argmax(axis=1))
    error_before = expected_calibration_error(*top_label(before, labels))
    error_after = expected_calibration_error(*top_label(after, labels))
    assert error_after < 0.03 < 0.15 < error_before


def test_limits():
    logits = np.tile([1.0, 0.0], (10, 1))
    assert fit_temperature(logits, [0] * 10) < 0.1
    assert fit_temperature(logits, [1] * 10) == pytest.approx(100, rel=1e-3)
    huge = np.array([[1e300, 0.0], [0.0, 1e300]])
    np.testing.assert_array_equal(apply_temperature(huge, 1.0), np.eye(2))


def test_float32_and_leading_axes():
    logits = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    probabilities = apply_temperature(logits, 2)
    assert probabilities.shape == (2, 3, 4)
    assert probabilities.dtype == "float64"
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1.0)


def test_agrees_with_scikit_learn():
    calibration = pytest.importorskip("sklearn.calibration")
    if not hasattr(calibration, "_TemperatureScaling"):
        pytest.skip("scikit-learn is too old for temperature scaling")
    logits, labels = calibrated(seed=4)
    theirs = calibration._TemperatureScaling().fit(3 * logits, labels)
    assert 1 / fit_temperature(3 * logits, labels) == pytest.approx(
        theirs.beta_, rel=1e-3
    )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: fit_temperature([0.5, 0.5], [0]), r"\(n, classes\)"),
        (lambda: fit_temperature(np.zeros((0, 2)), []), "non-empty"),
        (lambda: fit_temperature([[0.0, -np.inf]], [0]), "1 values"),
        (lambda: fit_temperature([[0.0, np.nan]], [0]), "np.maximum"),
        (lambda: fit_temperature([[0.0, 1.0]], [2]), r"\[0, 2\)"),
        (lambda: fit_temperature([[0.0, 1.0]], [0, 1]), "same length"),
        (lambda: fit_temperature([[0.0, 1.0]], [[0, 1]]), "one-hot"),
        (lambda: apply_temperature([[0.0, 1.0]], 0.0), "`temperature`"),
        (lambda: apply_temperature([[0.0, 1.0]], np.nan), "`temperature`"),
        (lambda: apply_temperature(1.0, 1.0), "non-empty"),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()
