"""`calibrate` with thresholds for each exit, and with a cost to be kept."""

import types

import keras
import numpy as np
import pytest
from scipy import stats

import keras_earlyexit as ee
from keras_earlyexit.calibration import (
    Observations,
    calibrate,
    observe,
    threshold_sequence,
)

INF = float("inf")
COSTS = np.array([0.25, 0.5, 1.01])


def fake_model(seen):
    """What calibrating observations needs of a model."""
    return types.SimpleNamespace(
        policy=ee.policies.get("learned"), relative_costs=seen.relative_costs
    )


def simulated(n, seed=0):
    """Two early exits whose scores mean different things: the first is
    over-confident, and wrong the more often the lower its score."""
    generator = np.random.default_rng(seed)
    score, luck = generator.random((2, n, 2))
    wrong = luck < [0.6, 0.2] * (1 - score)
    scores = score**0.5 * [1.0, 0.0] + score**2 * [0.0, 1.0]
    answers = [np.eye(2)[1 - part.astype(int)] for part in wrong.T]
    return Observations(
        scores=scores.astype("float32"),
        predictions=[*answers, np.eye(2)[np.ones(n, int)]],
        labels=np.ones(n, int),
        relative_costs=COSTS,
        exit_names=("exit_0", "exit_1", "final"),
        head=ee.tasks.Head(2, "softmax", "classification"),
        policy_name="learned",
    )


def true_risk(population, threshold):
    taken = population.exit_index(threshold)
    wrong = np.stack([population.answers(k) != 1 for k in range(3)], axis=1)
    return np.take_along_axis(wrong, taken[:, None], axis=1).mean()


def test_thresholds_for_each_exit_save_more_at_the_same_risk():
    seen = simulated(6000)
    sequence = threshold_sequence(seen.take(slice(1000)))
    seen = seen.take(slice(1000, None))
    one = calibrate(fake_model(seen), seen, epsilon=0.05)
    model = fake_model(seen)
    report = calibrate(model, seen, epsilon=0.05, thresholds=sequence)
    assert isinstance(report.threshold, tuple) and len(report.threshold) == 2
    assert model.policy.threshold == report.threshold
    assert report.threshold in [tuple(row) for row in sequence.tolist()]
    assert report.empirical_risk <= report.risk_bound < 0.05
    assert report.expected_relative_cost < one.expected_relative_cost - 0.02
    taken = seen.exit_index(report.threshold)
    assert report.expected_relative_cost == COSTS[taken].mean()
    np.testing.assert_allclose(
        report.exit_shares, np.bincount(taken, minlength=3) / 5000
    )
    assert report.walk.thresholds.shape == (50, 2)
    text = ", ".join(f"{value:.6g}" for value in report.threshold)
    assert text in str(report) and report.cost_bound is None


def test_last_row_before_the_first_failure_is_taken():
    seen = simulated(3000)
    rows = [[INF, INF], [0.99, 0.9], [0.0, 0.0], [0.98, 0.9]]
    report = calibrate(fake_model(seen), seen, epsilon=0.05, thresholds=rows)
    assert report.threshold == (0.99, 0.9)
    with pytest.warns(UserWarning, match="at the largest one, 0, 0, it is"):
        report = calibrate(
            fake_model(seen), seen, epsilon=0.05, thresholds=[[0.0, 0.0]]
        )
    assert report.threshold == (INF, INF) and report.exit_shares[2] == 1


def test_everybody_may_leave_at_once():
    seen = simulated(3000)
    rows = threshold_sequence(seen, num=5)
    report = calibrate(fake_model(seen), seen, epsilon=0.9, thresholds=rows)
    assert report.threshold == (-INF, -INF)
    assert report.expected_relative_cost == 0.25 and report.risk_bound > 0


def test_cost_and_risk_are_kept_together():
    seen = simulated(3000)
    model = fake_model(seen)
    report = calibrate(model, seen, epsilon=0.15, max_cost=0.6)
    assert report.expected_relative_cost <= report.cost_bound < 0.6
    assert report.empirical_risk <= report.risk_bound < 0.15
    assert report.max_cost == 0.6 and model.policy.threshold < INF
    assert "and the mean relative cost at most 0.6" in report.message
    assert "cost bound      0." in str(report)
    # The cheapest that keeps the risk at half of delta, as without a limit.
    alone = calibrate(fake_model(seen), seen, epsilon=0.15, delta=0.05)
    assert report.threshold == alone.threshold
    assert report.risk_bound == alone.risk_bound
    # A limit that cannot be missed costs the same share of delta.
    loose = calibrate(fake_model(seen), seen, epsilon=0.15, max_cost=3.0)
    assert loose.threshold == alone.threshold


def test_rows_and_cost_go_together():
    seen = simulated(6000)
    sequence = threshold_sequence(seen.take(slice(1000)))
    seen = seen.take(slice(1000, None))
    report = calibrate(
        fake_model(seen),
        seen,
        epsilon=0.1,
        max_cost=0.7,
        method="ltt",
        thresholds=sequence,
    )
    assert len(report.threshold) == 2
    assert report.cost_bound < 0.7 and report.risk_bound <= 0.1


def test_cost_out_of_reach_is_said_and_means_the_whole_model():
    seen = simulated(3000)
    model = fake_model(seen)
    with pytest.warns(UserWarning, match="cannot be kept within 0.3") as caught:
        report = calibrate(model, seen, epsilon=0.05, max_cost=0.3)
    assert caught[0].filename == __file__
    assert report.threshold == model.policy.threshold == INF
    assert report.cost_bound is None and report.expected_relative_cost == 1.01
    alone = calibrate(fake_model(seen), seen, epsilon=0.05, delta=0.05)
    for part in (
        f"keeps the risk, {alone.threshold:.6g}, costs",
        f"{alone.expected_relative_cost:.4f} on these samples",
        "the largest one that keeps the cost",
    ):
        assert part in report.message
    # A limit that no threshold keeps: there is nothing to compare with.
    with pytest.warns(UserWarning, match="cannot be kept") as caught:
        calibrate(fake_model(seen), seen, epsilon=0.05, max_cost=0.2501)
    assert "the largest one that keeps" not in str(caught[0].message)


def test_risk_out_of_reach_is_said_first():
    seen = simulated(200)
    with pytest.warns(UserWarning, match="200 calibration samples are too few"):
        calibrate(fake_model(seen), seen, epsilon=0.01, max_cost=0.9)
    with pytest.warns(UserWarning, match="no threshold keeps the risk"):
        calibrate(
            fake_model(seen), seen, epsilon=0.1, max_cost=0.9, thresholds=[0.0]
        )


def test_without_a_guarantee_none_is_promised():
    seen = simulated(3000)
    report = calibrate(
        fake_model(seen), seen, epsilon=0.15, max_cost=0.6, method="empirical"
    )
    assert "nothing is promised" in report.message
    assert report.cost_bound == pytest.approx(report.expected_relative_cost)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_cost": 0.25}, "above the cost of the cheapest exit, 0.25"),
        ({"max_cost": float("nan")}, "`max_cost` must be a number"),
        ({"max_cost": "0.4"}, "`max_cost` must be a number"),
        ({"max_cost": 0.5, "method": "crc"}, "all fall, or all grow"),
        ({"thresholds": np.zeros((4, 3))}, r"\(L, 2\) with one for each"),
        ({"thresholds": [[np.nan, 0.5]]}, "no NaN"),
        ({"thresholds": [[1, 0], [0, 1]], "method": "crc"}, "the row before"),
    ],
)
def test_errors_leave_the_policy_as_it_was(options, message):
    seen = simulated(300)
    model = fake_model(seen)
    model.policy.threshold = 0.123
    with pytest.raises(ValueError, match=message):
        calibrate(model, seen, **options)
    assert model.policy.threshold == 0.123


def test_a_real_model_gets_both():
    x, y = ee.datasets.load("digits", "train")
    inputs = keras.Input((8, 8, 1))
    net = keras.layers.Conv2D(16, 3, activation="relu", name="first")(inputs)
    net = keras.layers.Conv2D(32, 3, activation="relu", name="second")(net)
    net = keras.layers.Flatten()(net)
    net = keras.layers.Dense(64, activation="relu")(net)
    outputs = keras.layers.Dense(10, activation="softmax")(net)
    model = ee.add_exits(
        keras.Model(inputs, outputs), ["first", "second"], block="conv"
    )
    model.policy = "max_probability"
    model.compile(keras.optimizers.Adam(5e-3), objective="eenet_v0")
    model.fit(x / 16, y, epochs=5, batch_size=50, verbose=0)
    x, y = ee.datasets.load("digits", "calibration")
    seen = observe(model, x / 16, y)
    max_cost = 0.9 * float(model.relative_costs[-1])
    report = calibrate(
        model,
        seen.take(slice(100, None)),
        risk="performance_gap",
        epsilon=0.3,
        thresholds=threshold_sequence(seen.take(slice(100))),
        max_cost=max_cost,
    )
    assert report.risk_bound < 0.3 and report.cost_bound < max_cost
    result = model.predict_exits(x[100:] / 16)
    assert result.mean_cost == pytest.approx(
        report.expected_relative_cost, abs=0.01
    )
    np.testing.assert_allclose(
        result.exit_shares(3), report.exit_shares, atol=0.01
    )


@pytest.mark.long
@pytest.mark.parametrize("method", ["ucb", "ltt", "ucb_hb"])
def test_violations_are_as_rare_as_promised(method):
    population = simulated(20_000, seed=1)
    sequence = threshold_sequence(simulated(500, seed=2))
    generator = np.random.default_rng(0)
    epsilon, max_cost = 0.12, 0.62
    answered = wrong = 0
    for _ in range(300):
        sample = population.take(generator.integers(20_000, size=600))
        model = fake_model(sample)
        report = calibrate(
            model,
            sample,
            epsilon=epsilon,
            max_cost=max_cost,
            method=method,
            thresholds=sequence,
        )
        if report.cost_bound is not None:
            answered += 1
            wrong += (
                true_risk(population, report.threshold) > epsilon
                or population.mean_cost(report.threshold) > max_cost
            )
    assert wrong <= stats.binom.ppf(0.999, 300, 0.1)
    assert answered > 100
