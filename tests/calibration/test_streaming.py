"""Keras metrics against the figures from whole arrays, and in a model."""

import keras
import numpy as np
import pytest

import keras_earlyexit as ee
from keras_earlyexit.calibration import (
    CalibrationError,
    SetCoverage,
    SetSize,
    conformal_quantile,
    expected_calibration_error,
    observe,
    prediction_set_summary,
    prediction_sets,
    top_label,
)

pytestmark = pytest.mark.backends_long


def predictions(n=500, classes=5, seed=0):
    """Labels (n,) and over-confident logits (n, classes)."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=n)
    logits = generator.normal(size=(n, classes)) * 3
    logits[np.arange(n), labels] += 2
    return labels, logits.astype("float32")


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)).astype("float32")


def streamed(metric, labels, answers, size=64):
    for start in range(0, len(labels), size):
        rows = slice(start, start + size)
        metric.update_state(labels[rows], answers[rows])
    return float(metric.result())


@pytest.mark.parametrize("num_bins", [1, 4, 15])
def test_error_is_that_of_the_whole_array(num_bins):
    labels, logits = predictions()
    expected = expected_calibration_error(
        *top_label(softmax(logits), labels), num_bins
    )
    assert expected > 0.05
    found = streamed(CalibrationError(num_bins), labels, softmax(logits))
    assert found == pytest.approx(expected, abs=1e-5)
    metric = CalibrationError(num_bins, from_logits=True)
    assert streamed(metric, labels, logits) == pytest.approx(expected, abs=1e-5)
    metric.reset_state()
    assert float(metric.result()) == 0.0


def test_bins_include_their_upper_edge():
    # 0.5 belongs with 0.3, as it does in `reliability_data`.
    answers = np.float32([[0.5, 0.5], [0.7, 0.3], [0.9, 0.1]])
    labels = np.array([1, 0, 0])
    confidence, correct = top_label(answers, labels)
    expected = expected_calibration_error(confidence, correct, num_bins=2)
    assert expected == pytest.approx((0.5 + 0.4) / 3)
    found = streamed(CalibrationError(num_bins=2), labels, answers)
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "form", [lambda y: y, lambda y: y[:, None], lambda y: np.eye(5)[y]]
)
def test_labels_come_in_every_form(form):
    labels, logits = predictions()
    expected = streamed(CalibrationError(), labels, softmax(logits))
    found = streamed(CalibrationError(), form(labels), softmax(logits))
    assert found == expected
    sure = SetCoverage(0.3)
    expected = streamed(SetCoverage(0.3), labels, softmax(logits))
    assert streamed(sure, form(labels), softmax(logits)) == expected


def test_positions_count_as_samples():
    labels, logits = predictions()
    for make in (CalibrationError, lambda: SetCoverage(0.3)):
        expected = streamed(make(), labels, softmax(logits))
        found = streamed(
            make(), labels.reshape(50, 10), softmax(logits).reshape(50, 10, 5)
        )
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "make", [CalibrationError, lambda: SetCoverage(0.3), lambda: SetSize(0.3)]
)
def test_weight_of_zero_leaves_a_sample_out(make):
    labels, logits = predictions()
    answers = softmax(logits)
    weights = (np.arange(500) < 200).astype("float32")
    metric, expected = make(), make()
    metric.update_state(labels, answers, sample_weight=weights)
    expected.update_state(labels[:200], answers[:200])
    assert float(metric.result()) == pytest.approx(
        float(expected.result()), abs=1e-6
    )


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.001])
def test_sets_are_those_of_the_arrays(alpha):
    labels, logits = predictions()
    answers = softmax(logits)
    misfit = 1 - answers[:200][np.arange(200), labels[:200]]
    quantile = conformal_quantile(misfit, alpha)
    summary = prediction_set_summary(prediction_sets(answers, quantile), labels)
    if alpha == 0.001:  # Too few samples: every class.
        assert summary == {"mean_size": 5.0, "coverage": 1.0}
    size = streamed(SetSize(quantile), labels, answers)
    assert size == pytest.approx(summary["mean_size"], abs=0.003)
    coverage = streamed(SetCoverage(quantile), labels, answers)
    assert coverage == pytest.approx(summary["coverage"], abs=0.003)
    metric = SetCoverage(quantile, from_logits=True)
    assert streamed(metric, labels, logits) == pytest.approx(coverage, abs=0.01)


@pytest.mark.parametrize(
    "metric",
    [
        CalibrationError(7, from_logits=True, name="ece"),
        SetCoverage(0.25, name="covered"),
        SetSize(float("inf"), from_logits=True),
    ],
)
def test_config_makes_the_same_metric(metric):
    config = keras.saving.serialize_keras_object(metric)
    assert config["registered_name"].startswith("keras_earlyexit>")
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(metric)
    assert again.get_config() == metric.get_config()


def digits_model(activation="softmax"):
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(inputs)
    x = keras.layers.Conv2D(16, 3, activation="relu", name="middle")(x)
    x = keras.layers.Flatten()(x)
    outputs = keras.layers.Dense(10, activation=activation)(x)
    net = keras.Model(inputs, outputs)
    model = ee.add_exits(net, ["middle"], task="classification")
    model.policy = "max_probability"
    return model


@pytest.mark.parametrize("activation", ["softmax", "linear"])
def test_every_exit_and_the_routed_answers_have_them(tmp_path, activation):
    from_logits = activation == "linear"
    model = digits_model(activation)
    model.compile(
        "adam",
        objective="eenet_v0",
        metrics=[
            "accuracy",
            CalibrationError(from_logits=from_logits),
            SetCoverage(0.9, from_logits=from_logits),
            SetSize(0.9, from_logits=from_logits),
        ],
    )
    x, y = ee.datasets.load("digits", "test")
    x = x.astype("float32") / 16
    model.fit(x, y, epochs=2, verbose=0)
    seen = observe(model, x, y)
    model.policy.threshold = float(np.median(seen.scores))
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    taken = seen.exit_index(model.policy.threshold)
    routed = np.where((taken == 0)[:, None], *seen.predictions)
    for name, answers in zip(
        ("exit_0", "final", "routed"),
        (*seen.predictions, routed),
        strict=True,
    ):
        if from_logits:
            answers = softmax(answers)
        expected = expected_calibration_error(*top_label(answers, y))
        found = logs[f"{name}_calibration_error"]
        assert found == pytest.approx(expected, abs=1e-3)
        summary = prediction_set_summary(prediction_sets(answers, 0.9), y)
        found = logs[f"{name}_set_coverage"]
        assert found == pytest.approx(summary["coverage"], abs=1e-6)
        found = logs[f"{name}_set_size"]
        assert found == pytest.approx(summary["mean_size"], abs=1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    found = again.evaluate(x, y, verbose=0, return_dict=True)
    assert found.keys() == logs.keys()
    assert found["routed_calibration_error"] == pytest.approx(
        logs["routed_calibration_error"], abs=1e-6
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CalibrationError(0), "`num_bins` must be"),
        (lambda: SetSize(float("nan")), "`quantile` must be"),
        (lambda: SetCoverage("0.1"), "`quantile` must be"),
        (
            lambda: CalibrationError().update_state([1], np.ones((1, 1))),
            "at least two classes",
        ),
        (
            lambda: SetCoverage(0.1).update_state(
                np.zeros((4, 3)), np.ones((4, 2))
            ),
            "labels that fit",
        ),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()
