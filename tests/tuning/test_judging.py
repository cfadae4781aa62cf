"""Thresholds of a trial, and what they are worth."""

import types

import numpy as np
import pytest

import keras_earlyexit as ee
from keras_earlyexit.calibration import Observations
from keras_earlyexit.tuning.judging import front_of, judge

COSTS = np.array([0.3, 0.6, 1.1])


def samples(seed, n=400, task="classification"):
    """Samples whose deeper exits are better, and whose scores know it."""
    random = np.random.default_rng(seed)
    hardness = random.random(n)
    right = [hardness < 0.6, hardness < 0.8, hardness < 0.95]
    scores = np.stack([1 - hardness, 1 - hardness**2], axis=1)
    if task == "regression":
        predictions = [np.where(ok, 0.0, 2.0)[:, None] for ok in right]
        labels = np.zeros((n, 1))
        head = ee.tasks.Head(1, "linear", "regression")
    else:
        predictions = [np.eye(2)[ok.astype(int)] for ok in right]
        labels = np.ones(n, int)
        head = ee.tasks.Head(2, "softmax", "classification")
    return Observations(
        scores=scores.astype("float32"),
        predictions=predictions,
        labels=labels,
        relative_costs=COSTS,
        exit_names=("exit_0", "exit_1", "final"),
        head=head,
        policy_name="max_probability",
    )


def model():
    policy = types.SimpleNamespace(name="max_probability", threshold=None)
    return types.SimpleNamespace(policy=policy, relative_costs=COSTS)


def test_with_a_budget_the_score_is_what_the_budget_buys():
    trained, choose, judged = model(), samples(0), samples(1)
    found = judge(trained, choose, judged, budget=0.5)
    assert trained.policy.threshold == found.thresholds
    assert choose.mean_cost(found.thresholds) <= 0.5
    assert found.mean_cost == judged.mean_cost(found.thresholds)
    assert found.metric == judged.accuracy(found.thresholds)
    paid = [value for cost, value in found.curve if cost <= 0.5]
    assert found.score == max(paid)
    assert found.metric > judged.exit_accuracies()[0]
    assert found.final_metric == judged.exit_accuracies()[-1]


def test_more_than_there_is_to_spend():
    found = judge(model(), samples(0), samples(1), budget=5.0)
    assert found.mean_cost <= COSTS[-1]


def test_who_spends_too_much_does_not_win_for_it():
    """These thresholds cost more on the validation split than allowed."""
    choose, judged = samples(0), samples(1)
    hard = judged.take(np.argsort(judged.scores[:, 0])[:300])
    found = judge(model(), choose, hard, budget=0.5)
    assert found.mean_cost > 0.5 and found.score < found.metric


def test_a_budget_below_the_first_exit():
    with pytest.raises(ValueError, match="cost of `exit_0`, 0.3"):
        judge(model(), samples(0), samples(1), budget=0.2)


def test_without_a_budget_thresholds_give_little_away():
    choose, judged = samples(0), samples(1)
    trained = model()
    found = judge(trained, choose, judged, tolerance=0.02)
    assert trained.policy.threshold == found.thresholds
    best = choose.exit_accuracies()[-1]
    assert best - 0.02 <= choose.accuracy(found.thresholds)
    assert found.mean_cost < 0.8 * COSTS[-1]
    # By hand, over the curve's own steps.
    grid = (np.arange(100_000) + 0.5) / 100_000
    costs, values = np.transpose(found.curve)
    index = np.searchsorted(costs, grid, side="right") - 1
    area = np.mean(np.where(index < 0, 0.0, values[index]))
    assert found.score == pytest.approx(area, abs=1e-4)


def test_of_errors_less_is_better():
    choose, judged = (samples(seed, task="regression") for seed in (0, 1))
    found = judge(model(), choose, judged, budget=0.5)
    assert found.metric == judged.mean_absolute_error(found.thresholds)
    assert found.score < 0
    costs, values = np.transpose(found.curve)
    assert (np.diff(costs) > 0).all() and (np.diff(values) < 0).all()
    assert judge(model(), choose, judged).score < 0


def test_points_of_a_front_rise():
    costs, values = np.transpose(front_of(samples(0)))
    assert (np.diff(costs) > 0).all() and (np.diff(values) > 0).all()
    assert costs[0] == pytest.approx(COSTS[0])
