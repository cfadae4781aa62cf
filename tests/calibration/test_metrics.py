"""Calibration error, reliability data, conformal sets."""

import numpy as np
import pytest

from keras_earlyexit.calibration import (
    conformal_quantile,
    conformal_quantiles,
    expected_calibration_error,
    prediction_set_summary,
    prediction_sets,
    reliability_data,
    top_label,
)


def test_calibration_error_by_hand():
    confidence = [0.1, 0.3, 0.55, 0.6, 0.9, 1.0]
    correct = [0, 1, 1, 0, 1, 1]
    data = reliability_data(confidence, correct, num_bins=2)
    np.testing.assert_array_equal(data.edges, [0.0, 0.5, 1.0])
    np.testing.assert_array_equal(data.count, [2, 4])
    np.testing.assert_allclose(data.confidence, [0.2, 0.7625])
    np.testing.assert_allclose(data.accuracy, [0.5, 0.75])
    expected = (2 * 0.3 + 4 * 0.0125) / 6
    assert data.expected_calibration_error == pytest.approx(expected)
    error = expected_calibration_error(confidence, correct, num_bins=2)
    assert error == pytest.approx(expected)


def test_bins_include_their_upper_edge():
    data = reliability_data([0.0, 0.5, 1.0], [0, 0, 1], num_bins=2)
    np.testing.assert_array_equal(data.count, [2, 1])


def test_equal_mass_bins_by_hand():
    confidence = [0.9, 0.1, 0.2, 0.8, 0.7, 0.3, 0.95]
    correct = [1, 0, 0, 1, 0, 1, 1]
    data = reliability_data(confidence, correct, 3, "equal_mass")
    np.testing.assert_array_equal(data.count, [3, 2, 2])
    np.testing.assert_array_equal(data.edges, [0.1, 0.3, 0.8, 0.95])
    np.testing.assert_allclose(data.accuracy, [1 / 3, 0.5, 1.0])


@pytest.mark.parametrize("n", [1, 2, 14, 15, 16, 1000])
def test_equal_mass_counts_differ_by_one_at_most(n):
    confidence = np.random.default_rng(n).random(n)
    count = reliability_data(confidence, confidence > 0, 15, "equal_mass").count
    assert count.sum() == n
    assert count.max() - count.min() <= 1


def test_ties_share_a_bin_and_empty_bins_count_nothing():
    data = reliability_data([0.8] * 10, [1] * 8 + [0] * 2, 5, "equal_mass")
    assert sorted(data.count) == [0, 0, 0, 0, 10]
    assert np.isnan(data.accuracy[data.count == 0]).all()
    assert data.expected_calibration_error == pytest.approx(0.0)


@pytest.mark.parametrize("binning", ["equal_width", "equal_mass"])
def test_one_bin_compares_the_means(binning):
    generator = np.random.default_rng(0)
    confidence, correct = generator.random(50), generator.random(50) > 0.3
    error = expected_calibration_error(confidence, correct, 1, binning)
    assert error == pytest.approx(abs(confidence.mean() - correct.mean()))


@pytest.mark.parametrize("binning", ["equal_width", "equal_mass"])
def test_calibrated_confidences_have_a_small_error(binning):
    generator = np.random.default_rng(1)
    confidence = generator.random(100_000)
    correct = generator.random(100_000) < confidence
    wrong = generator.random(100_000) < confidence**2
    error = expected_calibration_error
    assert error(confidence, correct, binning=binning) < 0.01
    assert error(confidence, wrong, binning=binning) == pytest.approx(
        1 / 6, abs=0.01
    )


def test_calibration_error_agrees_with_mapie():
    mapie = pytest.importorskip("mapie.metrics.calibration")
    generator = np.random.default_rng(2)
    confidence = generator.random(500)
    correct = (generator.random(500) < confidence**2).astype(int)
    # MAPIE's count is that of the edges.
    theirs = mapie.expected_calibration_error(
        correct, confidence, num_bins=16, split_strategy="uniform"
    )
    assert expected_calibration_error(confidence, correct) == pytest.approx(
        theirs
    )


def test_top_label():
    probabilities = np.array([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]], "float32")
    confidence, correct = top_label(probabilities, [[1], [0], [1]])
    np.testing.assert_allclose(confidence, [0.8, 0.5, 0.9], rtol=1e-6)
    np.testing.assert_array_equal(correct, [True, True, False])


def test_conformal_quantile_is_the_exact_rank():
    scores = np.random.default_rng(0).permutation(9) + 1.0
    # (9 + 1)(1 - alpha), in floating point too: (1 - 0.7) * 10 > 3.
    for tenths in range(1, 10):
        assert conformal_quantile(scores, tenths / 10) == 10 - tenths
    assert conformal_quantile(scores, 0.099) == np.inf
    assert conformal_quantile([0.3], 0.5) == 0.3


def simulated_exits(n, seed):
    """Predictions (2, n, 3) of two exits, the second one better."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(3, size=n)
    signal = np.eye(3)[labels] * generator.gamma(2.0, 1.0, (n, 1))
    logits = generator.normal(size=(2, n, 3)) + [[[1.0]], [[2.0]]] * signal
    weights = np.exp(logits)
    probabilities = weights / weights.sum(axis=-1, keepdims=True)
    exit_index = (probabilities[0].max(axis=1) <= 0.8).astype(int)
    return probabilities, labels, exit_index


@pytest.mark.parametrize("pooled", [False, True])
def test_conformal_sets_cover(pooled):
    """Coverage is 1 - alpha on average over calibration sets."""
    test, labels, exit_index = simulated_exits(20_000, seed=0)
    answers = np.take_along_axis(test, exit_index[None, :, None], axis=0)[0]
    everyone, per_exit = [], []
    for seed in range(1, 61):
        quantiles = conformal_quantiles(
            *simulated_exits(300, seed), alpha=0.1, pooled=pooled
        )
        sets = prediction_sets(answers, quantiles[exit_index])
        everyone.append(prediction_set_summary(sets, labels)["coverage"])
        per_exit.append(
            [
                prediction_set_summary(
                    sets[exit_index == k], labels[exit_index == k]
                )["coverage"]
                for k in range(2)
            ]
        )
    assert np.mean(everyone) == pytest.approx(0.9, abs=0.012)
    per_exit = np.mean(per_exit, axis=0)
    if pooled:  # On average only.
        assert per_exit.max() - per_exit.min() > 0.05
    else:
        np.testing.assert_allclose(per_exit, 0.9, atol=0.015)


def test_an_exit_with_few_samples_uses_everybody():
    probabilities, labels, _ = simulated_exits(200, seed=3)
    exit_index = np.zeros(200, int)
    exit_index[:20] = 1
    quantiles = conformal_quantiles(probabilities, labels, exit_index, 0.1)
    scores = 1 - probabilities[:, np.arange(200), labels]
    assert quantiles[0] == conformal_quantile(scores[0, 20:], 0.1)
    assert quantiles[1] == conformal_quantile(scores[1], 0.1)
    exit_index[20] = 1
    quantiles = conformal_quantiles(probabilities, labels, exit_index, 0.1)
    assert quantiles[1] == conformal_quantile(scores[1, :21], 0.1)


def test_the_sample_that_set_the_quantile_is_covered():
    probabilities, labels, _ = simulated_exits(200, seed=4)
    scores = 1 - probabilities[0, np.arange(200), labels]
    for alpha in np.linspace(0.01, 0.99, 99):
        quantile = conformal_quantile(scores, alpha)
        sets = prediction_sets(probabilities[0], quantile)
        coverage = prediction_set_summary(sets, labels)["coverage"]
        assert coverage >= 1 - alpha - 1e-12


def test_infinite_quantile_takes_every_class():
    sets = prediction_sets([[0.9, 0.1], [1.0, 0.0]], np.inf)
    summary = prediction_set_summary(sets, [1, 1])
    assert summary == {"mean_size": 2.0, "coverage": 1.0}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: top_label([[2.0, -1.0]], [0]), "apply_temperature"),
        (lambda: top_label([[np.nan, 0.5]], [0]), "NaN"),
        (lambda: top_label([0.5, 0.5], [0]), r"\(n, classes\)"),
        (lambda: top_label([[0.5, 0.5]], [0.0]), "integer"),
        (lambda: top_label([[0.5, 0.5]], [[0, 1]]), "one-hot"),
        (lambda: top_label([[0.5, 0.5]], [2]), r"\[0, 2\)"),
        (lambda: top_label([[0.5, 0.5]], [0, 1]), "same length"),
        (lambda: reliability_data([], []), "non-empty"),
        (lambda: reliability_data([0.5], [1, 0]), "same length"),
        (lambda: reliability_data([0.5], [2]), "`correct`"),
        (lambda: reliability_data([0.5], [1], 0), "`num_bins`"),
        (lambda: reliability_data([0.5], [1], 2.5), "`num_bins`"),
        (lambda: reliability_data([0.5], [1], 5, "mass"), "'equal_mass'"),
        (lambda: conformal_quantile([], 0.1), "`scores`"),
        (lambda: conformal_quantile([0.1, np.nan], 0.1), "NaN"),
        (lambda: conformal_quantile([0.1], 1.0), "`alpha`"),
        (
            lambda: conformal_quantiles([[[0.5, 0.5]]], [0], [1], 0.1),
            "ExitResult",
        ),
        (
            lambda: conformal_quantiles([[[0.5, 0.5]]], [0], [0, 0], 0.1),
            "`exit_index`",
        ),
        (lambda: prediction_sets([[0.5, 0.5]], [0.1, 0.1]), "same length"),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()
