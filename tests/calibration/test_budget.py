"""Shares for a budget, thresholds for shares, and a model that has both."""

import dataclasses

import keras
import numpy as np
import pytest

import keras_earlyexit as ee
from keras_earlyexit.calibration import (
    Fingerprints,
    Observations,
    calibrate_budget,
    exit_shares_for,
    observe,
    threshold_sequence,
    thresholds_for_shares,
)

COSTS = np.array([0.25, 0.45, 1.01])
INF = float("inf")


def pixels(split):
    x, y = ee.datasets.load("digits", split)
    return x.astype("float32") / 16, y


def observations(scores):
    """What is known of samples whose answers do not matter."""
    scores = np.asarray(scores, "float32")
    return Observations(
        scores=scores,
        predictions=[np.zeros((len(scores), 2), "float32")] * 3,
        labels=None,
        relative_costs=COSTS,
        exit_names=("exit_0", "exit_1", "final"),
        head=ee.tasks.Head(2, "softmax", "classification"),
        policy_name="max_probability",
    )


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(inputs)
    x = keras.layers.Conv2D(16, 3, activation="relu", name="middle")(x)
    x = keras.layers.Dense(64, activation="relu")(keras.layers.Flatten()(x))
    outputs = keras.layers.Dense(10, activation="softmax")(x)
    net = keras.Model(inputs, outputs)
    model = ee.add_exits(net, [net.layers[1].name, "middle"])
    model.policy = "max_probability"
    return model


@pytest.mark.parametrize("budget", [0.26, 0.4, 0.57, 0.9, 1.0])
def test_shares_are_geometric_and_cost_the_budget(budget):
    shares = exit_shares_for(budget, COSTS)
    assert shares.sum() == pytest.approx(1)
    assert shares @ COSTS == pytest.approx(budget, abs=1e-12)
    # a_1 / a_0 = a_2 / a_1 = p
    assert shares[1] ** 2 == pytest.approx(shares[0] * shares[2], rel=1e-6)


def test_the_ends_of_the_range_take_one_exit():
    np.testing.assert_array_equal(exit_shares_for(0.25, COSTS), [1, 0, 0])
    np.testing.assert_array_equal(exit_shares_for(1.01, COSTS), [0, 0, 1])
    assert len(exit_shares_for(0.5, [0.1, 1.0])) == 2


def test_floor_of_n_shares_leave():
    generator = np.random.default_rng(0)
    seen = observations(generator.random((1000, 2)))
    for shares in ([0.3, 0.3, 0.4], [0.1, 0.2, 0.7], [0.5, 0.5, 0.0]):
        thresholds = thresholds_for_shares(seen, shares)
        np.testing.assert_allclose(seen.exit_shares(thresholds), shares)
    thresholds = thresholds_for_shares(seen, [0.3336, 0.3336, 0.3328])
    counts = 1000 * seen.exit_shares(thresholds)
    np.testing.assert_allclose(counts, [333, 333, 334])


def test_thresholds_stand_in_the_middle_of_the_gap():
    seen = observations([[0.9, 0.1], [0.5, 0.2], [0.3, 0.8], [0.1, 0.4]])
    thresholds = thresholds_for_shares(seen, [0.25, 0.5, 0.25])
    np.testing.assert_allclose(thresholds, [0.7, 0.3])
    np.testing.assert_array_equal(seen.exit_index(thresholds), [0, 2, 1, 1])


def test_equal_scores_stay_together_and_never_too_many_leave():
    scores = np.float32([[0.9, 0.0]] + [[0.7, 0.0]] * 4 + [[0.2, 0.0]] * 5)
    seen = observations(scores)
    for share, left in ((0.1, 1), (0.3, 1), (0.5, 5), (0.9, 5), (1.0, 10)):
        thresholds = thresholds_for_shares(seen, [share, 0.0, 1 - share])
        assert np.sum(seen.exit_index(thresholds) == 0) == left
    saturated = observations(np.ones((10, 2)))
    thresholds = thresholds_for_shares(saturated, [0.5, 0.3, 0.2])
    np.testing.assert_array_equal(thresholds, [INF, INF])


def test_neighbouring_floats_are_told_apart():
    one = np.float32(0.5)
    seen = observations([[np.nextafter(one, np.float32(1)), 0], [one, 0]])
    thresholds = thresholds_for_shares(seen, [0.5, 0.0, 0.5])
    np.testing.assert_array_equal(seen.exit_index(thresholds), [0, 2])


def test_nobody_and_everybody():
    seen = observations(np.random.default_rng(0).random((50, 2)))
    for shares, expected in (
        ([1, 0, 0], [-INF, -INF]),
        ([0, 1, 0], [INF, -INF]),
        ([0, 0, 1], [INF, INF]),
    ):
        thresholds = thresholds_for_shares(seen, shares)
        np.testing.assert_array_equal(thresholds, expected)
        np.testing.assert_allclose(seen.exit_shares(thresholds), shares)


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.8])
def test_budget_is_spent_and_never_exceeded(model, budget):
    x, y = pixels("calibration")
    low, _, high = model.relative_costs
    budget = low + budget * (high - low)
    report = calibrate_budget(model, x, budget=budget)
    assert model.policy.threshold == report.threshold
    assert len(report.threshold) == 2 and report.n == 397
    # One sample more or less at `final` is 0.25 % of the samples.
    assert budget - 0.01 < report.expected_relative_cost <= budget
    result = model.predict_exits(x)
    assert result.mean_cost == pytest.approx(
        report.expected_relative_cost, abs=0.005
    )
    np.testing.assert_allclose(
        report.exit_shares, report.asked_shares, atol=0.01
    )
    # Observations stand in for data, and labels are no part of it.
    again = calibrate_budget(model, observe(model, x, y), budget=budget)
    assert again.threshold == report.threshold


def test_shares_stand_in_for_a_budget(model):
    x, _ = pixels("calibration")
    report = calibrate_budget(model, x, shares=[0.5, 0.25, 0.25])
    np.testing.assert_allclose(
        report.exit_shares, [198 / 397, 99 / 397, 100 / 397]
    )
    assert report.budget is None
    expected = observe(model, x).mean_cost(report.threshold)
    assert report.expected_relative_cost == expected


def test_scores_that_are_whole_numbers_keep_within_the_budget(model):
    # The scores of `patience` are 0 or 1: shares cannot be had as asked for.
    x, _ = pixels("calibration")
    before = model.policy
    model.policy = ee.policies.get("patience", patience=1)
    for budget in np.linspace(*model.relative_costs[[0, -1]], 7):
        report = calibrate_budget(model, x, budget=budget)
        assert report.expected_relative_cost <= budget + 1e-9
    model.policy = before


def test_report_reads_well(model):
    budget = float(model.relative_costs[1])
    text = str(calibrate_budget(model, pixels("test")[0], budget=budget))
    for part in ("BudgetReport", "400 samples", "exit_1", f"{budget:.1%}"):
        assert part in text


def test_trained_samples_are_noticed(model, monkeypatch):
    x, _ = pixels("calibration")
    record = Fingerprints()
    record.add(x[:10])
    monkeypatch.setattr(model, "training_fingerprints", record, raising=False)
    seen = observe(model, x)
    model.policy.threshold = 0.123
    with pytest.raises(ValueError, match="10 of the 12 calibration samples"):
        calibrate_budget(model, seen.take(slice(12)), shares=[1, 0, 0])
    assert model.policy.threshold == 0.123
    with pytest.warns(UserWarning, match="on 10 of the 397") as caught:
        calibrate_budget(model, seen, shares=[1, 0, 0])
    assert caught[0].filename == __file__


def test_sequence_runs_from_nobody_to_everybody():
    seen = observations(np.random.default_rng(0).random((2000, 2)))
    rows = threshold_sequence(seen, num=30)
    assert rows.shape == (30, 2)
    assert np.all(rows[1:] <= rows[:-1])
    costs = seen.relative_costs[seen.exit_index_grid(rows)].mean(axis=0)
    np.testing.assert_allclose(costs[[0, -1]], COSTS[[-1, 0]])
    assert np.all(np.diff(costs) <= 0) and len(np.unique(costs)) > 25
    # Both exits get thresholds of their own.
    assert np.ptp(rows[10:20, 0] - rows[10:20, 1]) > 0.05


def test_sequence_of_real_scores_is_nested(model):
    rows = threshold_sequence(observe(model, pixels("calibration")[0]))
    assert rows.shape == (50, 2) and np.all(rows[1:] <= rows[:-1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exit_shares_for(0.2, COSTS), "cost of `exit_0`, 0.25"),
        (lambda: exit_shares_for(1.2, COSTS), "of `final`, 1.01"),
        (lambda: exit_shares_for(np.nan, COSTS), "`budget` must be"),
        (lambda: exit_shares_for("0.4", COSTS), "`budget` must be"),
        (lambda: exit_shares_for(0.4, [0.5, 0.2, 1]), "increase from exit"),
        (lambda: exit_shares_for(0.4, [0.5]), "increase from exit"),
        (lambda: exit_shares_for(0.4, [0.1, np.nan]), "increase from exit"),
    ],
)
def test_bad_budgets(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "shares", [[0.5, 0.5], [0.5, 0.6, 0.2], [1.5, -0.5, 0], [np.nan, 0, 1], 1.0]
)
def test_bad_shares(shares):
    seen = observations(np.ones((4, 2)))
    with pytest.raises(ValueError, match="`shares` must be 3 shares"):
        thresholds_for_shares(seen, shares)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either `budget` or `shares`"),
        ({"budget": 0.5, "shares": [0, 0, 1]}, "either `budget`"),
        ({"budget": 9.0}, "`budget` must lie between"),
        ({"shares": [1.0]}, "`shares` must be 3"),
    ],
)
def test_errors_leave_the_policy_as_it_was(model, options, message):
    model.policy.threshold = 0.123
    with pytest.raises(ValueError, match=message):
        calibrate_budget(model, pixels("calibration")[0], **options)
    assert model.policy.threshold == 0.123


def test_bad_sequences_and_observations(model):
    seen = observe(model, pixels("calibration")[0])
    for num in (1, 0, 2.5):
        with pytest.raises(ValueError, match="`num` must be"):
            threshold_sequence(seen, num)
    other = dataclasses.replace(seen, policy_name="learned")
    with pytest.raises(ValueError, match="Observe it again"):
        calibrate_budget(model, other, shares=[0, 0, 1])
    with pytest.raises(TypeError, match="Expected a model with exits"):
        calibrate_budget(ee.strip_exits(model), seen, shares=[0, 0, 1])
