"""Calibration of real models, and of observations whose risk is known."""

import dataclasses
import types

import keras
import numpy as np
import pytest

import keras_earlyexit as ee
from keras_earlyexit.calibration import (
    Observations,
    calibrate,
    control_risk,
    observe,
)

pytestmark = pytest.mark.backends_long
METHODS = ("empirical", "crc", "ucb", "ucb_hb", "ltt")
INF = float("inf")


def pixels(split):
    x, y = ee.datasets.load("digits", split)
    return x.astype("float32") / 16, y


def conv_net(units=10, activation="softmax"):
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(16, 3, activation="relu", name="first")(inputs)
    x = keras.layers.Conv2D(32, 3, activation="relu")(x)
    x = keras.layers.Dense(64, activation="relu")(keras.layers.Flatten()(x))
    outputs = keras.layers.Dense(units, activation=activation)(x)
    return keras.Model(inputs, outputs)


@pytest.fixture(scope="session")
def trained():
    keras.utils.set_random_seed(0)
    model = ee.add_exits(conv_net(), ["first"], block="conv")
    model.policy = "max_probability"
    model.compile(keras.optimizers.Adam(5e-3), objective="eenet_v0")
    model.fit(*pixels("train"), epochs=6, batch_size=50, verbose=0)
    return model


@pytest.fixture
def model(trained):
    trained.policy.threshold = 0.123
    return trained


def test_reported_is_what_happens_on_the_calibration_set(model):
    x, y = pixels("calibration")
    report = calibrate(model, x, epsilon=0.05)
    assert model.policy.threshold == report.threshold < INF
    seen = observe(model, x, y)
    taken = seen.exit_index(report.threshold)
    whole = seen.answers(-1)
    routed = np.where(taken == 0, seen.answers(0), whole)
    assert report.empirical_risk == pytest.approx(np.mean(routed != whole))
    assert report.empirical_risk <= report.risk_bound < report.epsilon
    assert report.expected_relative_cost == seen.mean_cost(report.threshold)
    assert report.expected_relative_cost < 1
    np.testing.assert_allclose(
        report.exit_shares, np.bincount(taken, minlength=2) / 397
    )
    assert (report.n, report.delta, report.method) == (397, 0.1, "ucb")
    # The model routes alike, but for rounding at the threshold itself.
    result = model.predict_exits(x)
    assert np.sum(result.exit_index != taken) <= 2


def test_consistency_never_needs_labels(model):
    x, y = pixels("calibration")
    without = calibrate(model, x)
    assert without.risk == "consistency" and without.loss == "zero_one"
    assert calibrate(model, x, y).threshold == without.threshold
    nonsense = np.full(len(x), -5)
    assert calibrate(model, x, nonsense).threshold == without.threshold
    batches = [(x[:200], "no labels"), (x[200:], None)]
    assert calibrate(model, iter(batches)).threshold == without.threshold


def test_observations_stand_in_for_data(model):
    x, y = pixels("calibration")
    direct = calibrate(model, x, y, risk="performance_gap", epsilon=0.05)
    model.policy.threshold = 0.5
    seen = observe(model, x, y)
    cached = calibrate(model, seen, risk="performance_gap", epsilon=0.05)
    assert cached.threshold == direct.threshold == model.policy.threshold
    assert cached.empirical_risk == direct.empirical_risk


@pytest.mark.parametrize("method", METHODS)
def test_the_next_lower_threshold_is_not_admissible(model, method):
    seen = observe(model, *pixels("calibration"))
    options = {"epsilon": 0.05, "method": method, "risk": "performance_gap"}
    report = calibrate(model, seen, **options)
    assert report.empirical_risk <= report.risk_bound <= 0.05 + 1e-9
    lower = seen.scores[seen.scores < report.threshold]
    if lower.size and report.threshold < INF:
        walk = report.walk
        chosen = np.flatnonzero(walk.thresholds == report.threshold)[0]
        assert walk.bounds[chosen + 1] > 0.05 - 1e-6
        assert np.all(walk.bounds[: chosen + 1] <= 0.05 + 1e-9)


def fake_model(seen):
    """What calibrating observations needs of a model."""
    return types.SimpleNamespace(
        policy=ee.policies.get("learned"), relative_costs=seen.relative_costs
    )


def known(scores, early_right, units=2, policy_name="learned"):
    """One early exit that agrees with `final`, always class 1, or does not."""
    scores = np.asarray(scores, "float32")[:, None]
    early = np.eye(units)[np.asarray(early_right, int)]
    final = np.eye(units)[np.ones(len(scores), int)]
    return Observations(
        scores=scores,
        predictions=[early, final],
        labels=np.ones(len(scores), int),
        relative_costs=np.array([0.4, 1.1]),
        exit_names=("exit_0", "final"),
        head=ee.tasks.Head(units, "softmax", "classification"),
        policy_name=policy_name,
    )


def test_candidates_are_distinct_scores_at_most_200_and_never():
    scores = np.linspace(0, 1, 1001)
    seen = known(scores, np.ones(1001))
    walk = calibrate(fake_model(seen), seen).walk
    assert len(walk.thresholds) == 201 and walk.thresholds[0] == INF
    assert set(walk.thresholds[1:]) <= set(seen.scores[:, 0].tolist())
    assert walk.thresholds[-1] == 0
    assert np.all(np.diff(walk.thresholds) < 0)
    assert np.all(np.diff(walk.relative_costs) < 0)


def test_known_case_takes_the_smallest_safe_threshold():
    # Scores above 0.5 agree, those below do not.
    scores = np.tile([0.2, 0.4, 0.6, 0.8], 250)
    seen = known(scores, scores > 0.5)
    model = fake_model(seen)
    report = calibrate(model, seen)
    assert report.threshold == model.policy.threshold == np.float32(0.4)
    assert report.empirical_risk == 0
    assert report.expected_relative_cost == pytest.approx(0.75)
    np.testing.assert_allclose(report.exit_shares, [0.5, 0.5])
    assert calibrate(model, seen, thresholds=[0.9, 0.5, 0.7]).threshold == 0.5


def test_sorted_samples_do_not_fool_the_bound():
    # Half the samples, all in front, agree; one in five of the others differs.
    right = np.ones(1000)
    right[500::5] = 0
    scores = np.tile([0.5, 0.6], 500)
    seen = known(scores, right)
    in_order = control_risk((right == 0)[:, None], [0.4], epsilon=0.05)
    assert in_order == 0.4  # a risk of 0.1 is let through
    with pytest.warns(UserWarning, match="no threshold keeps the risk"):
        report = calibrate(fake_model(seen), seen, epsilon=0.05)
    assert report.threshold == INF


def test_overthinking_counts_for_the_gap():
    # Where the exit differs it is right, and the whole model wrong.
    seen = known(np.linspace(0, 1, 500), np.zeros(500))
    seen = dataclasses.replace(seen, labels=np.zeros(500, int))
    options = {"risk": "performance_gap", "method": "crc"}
    report = calibrate(fake_model(seen), seen, **options)
    assert report.threshold == 0 and report.empirical_risk < -0.99


def test_brier_is_the_sum_of_squares():
    seen = known(np.linspace(0, 1, 500), np.ones(500))
    early = np.tile([0.1, 0.9], (500, 1)).astype("float32")
    seen = dataclasses.replace(seen, predictions=[early, seen.predictions[1]])
    report = calibrate(fake_model(seen), seen, loss="brier", epsilon=0.1)
    assert report.walk.risks[-1] == pytest.approx(0.02 * 499 / 500)
    logits = [np.log(np.maximum(p, 1e-30)) for p in seen.predictions]
    head = ee.tasks.Head(2, "linear", "classification")
    same = dataclasses.replace(seen, predictions=logits, head=head)
    again = calibrate(fake_model(same), same, loss="brier", epsilon=0.1)
    np.testing.assert_allclose(again.walk.risks, report.walk.risks, atol=1e-6)


def test_multilabel_losses_are_means_over_labels():
    seen = known(np.linspace(0, 1, 500), np.ones(500))
    early, final = np.zeros((2, 500, 4))
    early[:, 0] = 0.9
    seen = dataclasses.replace(
        seen,
        predictions=[early, final],
        head=ee.tasks.Head(4, "sigmoid", "multilabel"),
    )
    options = {"epsilon": 0.6, "method": "crc"}
    report = calibrate(fake_model(seen), seen, **options)
    assert report.walk.risks[-1] == pytest.approx(0.25 * 499 / 500)
    report = calibrate(fake_model(seen), seen, loss="brier", **options)
    expected = 2 * 0.9**2 / 4 * 499 / 500
    assert report.walk.risks[-1] == pytest.approx(expected)


def test_callable_gets_classes_and_probabilities(model):
    x, y = pixels("calibration")
    given = []

    def doubt(y_true, y_pred):
        given.append((y_true, y_pred))
        return 1 - np.take_along_axis(y_pred, y_true[:, None], axis=1)

    report = calibrate(
        model, x, y, risk="performance_gap", loss=doubt, epsilon=0.1
    )
    assert report.loss == "doubt" and report.threshold < INF
    (y_true, y_pred), *_ = given
    np.testing.assert_array_equal(y_true, y)
    np.testing.assert_allclose(y_pred.sum(axis=1), 1, atol=1e-5)


def test_values_take_a_callable():
    model = ee.add_exits(conv_net(1, None), ["first"], task="regression")
    x, y = pixels("calibration")

    def clipped(y_true, y_pred):
        return keras.ops.minimum(
            keras.losses.mean_absolute_error(y_true, y_pred) / 20, 1
        )

    report = calibrate(model, x, y, risk="performance_gap", loss=clipped,
                       epsilon=0.5)  # fmt: skip
    assert report.threshold < INF
    assert calibrate(model, x, loss=clipped, epsilon=0.5).threshold < INF


def test_too_few_samples_are_said_and_counted(model):
    x, _ = pixels("calibration")
    seen = observe(model, x[:100])
    with pytest.warns(UserWarning, match="at least 119, or allow") as caught:
        report = calibrate(model, seen)
    assert caught[0].filename == __file__
    assert report.threshold == model.policy.threshold == INF
    assert "100 calibration samples are too few" in report.message
    assert report.exit_shares[-1] == 1 and report.risk_bound == 0
    agree = known(np.linspace(0, 1, 119), np.ones(119))
    assert calibrate(fake_model(agree), agree).threshold < INF


@pytest.mark.parametrize(
    ("method", "loss", "needed"),
    [("crc", "zero_one", 19), ("crc", "brier", 39), ("ltt", "zero_one", 45)],
)
def test_needed_samples_follow_from_the_rule(method, loss, needed):
    options = {"method": method, "loss": loss, "epsilon": 0.05}
    few = known(np.linspace(0, 1, needed - 1), np.ones(needed - 1))
    with pytest.warns(UserWarning, match=f"at least {needed}, or"):
        calibrate(fake_model(few), few, **options)
    enough = known(np.linspace(0, 1, needed), np.ones(needed))
    assert calibrate(fake_model(enough), enough, **options).threshold < INF


def test_a_level_out_of_reach_means_the_whole_model(model):
    x, _ = pixels("calibration")
    seen = observe(model, x)
    with pytest.warns(UserWarning, match="no threshold keeps the risk"):
        report = calibrate(model, seen, thresholds=[-1.0], epsilon=0.011)
    assert report.threshold == model.policy.threshold == INF
    assert "-1" in report.message
    assert report.expected_relative_cost == pytest.approx(
        model.relative_costs[-1]
    )


def wrong(y_true, y_pred):
    return y_pred.sum(axis=1) * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"risk": "performance_gap"}, "Expected labels for risk"),
        ({"risk": "consistent"}, "Expected `risk` to be"),
        ({"loss": "mse"}, "Expected `loss` to be"),
        ({"loss": wrong}, "Expected losses in"),
        ({"loss": lambda y_true, y_pred: 0.0}, "one loss per sample"),
        ({"epsilon": 0}, "`epsilon` must be"),
        ({"delta": 1.0}, "`delta` must be"),
        ({"method": "wsr"}, "`method` must be"),
        ({"thresholds": []}, "at least one threshold"),
        ({"thresholds": [0.1, np.nan]}, "no NaN"),
        ({"x": np.full((50, 8, 8, 1), np.nan, "float32")}, "finite inputs"),
        ({"x": np.zeros((0, 8, 8, 1), "float32")}, "at least one sample"),
    ],
)
def test_errors_leave_the_policy_as_it_was(model, options, message):
    options = {"x": pixels("calibration")[0], **options}
    with pytest.raises(ValueError, match=message):
        calibrate(model, **options)
    assert model.policy.threshold == 0.123


def test_no_samples_are_refused(model):
    seen = observe(model, pixels("calibration")[0])
    with pytest.raises(ValueError, match="at least one calibration sample"):
        ee.calibrate(model, seen.take(slice(1000, None)))


def test_observations_of_another_policy_are_refused(model):
    seen = observe(model, pixels("calibration")[0])
    other = dataclasses.replace(seen, policy_name="learned")
    with pytest.raises(ValueError, match="Observe it again"):
        calibrate(model, other)
    with pytest.raises(ValueError, match="Expected labels for risk"):
        calibrate(model, seen, risk="performance_gap")
    assert model.policy.threshold == 0.123
    with pytest.raises(TypeError, match="Expected a model with exits"):
        calibrate(ee.strip_exits(model), seen)


@pytest.mark.parametrize("loss", ["zero_one", "brier"])
def test_values_have_no_classes(loss):
    model = ee.add_exits(conv_net(1, None), ["first"], task="regression")
    with pytest.raises(ValueError, match="Expected a classifier"):
        calibrate(model, pixels("calibration")[0], loss=loss)


def test_report_reads_well(model, tmp_path):
    report = calibrate(model, pixels("calibration")[0], epsilon=0.05)
    text = str(report)
    for part in ("consistency", "zero_one", "397 samples", "final", "0.05"):
        assert part in text
    assert "With probability 0.9" in text and "walk" not in repr(report)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.threshold = 0.0
    report.plot(tmp_path / "risk.png")
    assert (tmp_path / "risk.png").stat().st_size > 5000


@pytest.mark.long
@pytest.mark.parametrize("method", ["ucb", "ltt", "ucb_hb"])
def test_violations_are_as_rare_as_promised(model, method):
    population = observe(model, *pixels("calibration"))
    rng = np.random.default_rng(0)
    risks = []
    for _ in range(300):
        sample = population.take(rng.integers(0, 397, 200))
        report = calibrate(model, sample, epsilon=0.05, method=method)
        taken = population.exit_index(report.threshold)
        whole = population.answers(-1)
        routed = np.where(taken == 0, population.answers(0), whole)
        risks.append(np.mean(routed != whole))
    # Three standard deviations above delta.
    assert np.mean(np.array(risks) > 0.05) < 0.1 + 3 * 0.0174
