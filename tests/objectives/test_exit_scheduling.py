"""Scores, assignment and its two terms by hand; who gets a gradient."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_earlyexit as ee
from keras_earlyexit.objectives.exit_scheduling import (
    Assignment,
    ScheduledScore,
)

pytestmark = pytest.mark.backends_long

EAGER = keras.backend.backend() != "jax"
COSTS = [0.25, 0.5, 1.0]
GENERATOR = np.random.default_rng(5)
LOGITS = GENERATOR.normal(size=(3, 4, 5)).astype("float32")
Y = np.array([0, 4, 2, 2])


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("logits", [True, False])
def test_scores_and_wishes(logits):
    given = LOGITS if logits else softmax(LOGITS)
    memory = None
    scores, wishes = np.zeros((4, 0)), np.zeros((4, 0))
    for i in range(2):
        layer = ScheduledScore(5, from_logits=logits)
        half = np.full((4, 1), 0.5, "float32")
        found = layer(given[i], confidence=half, memory=memory)
        memory = found["memory"]
        p = softmax(LOGITS[i])
        certainty = 1 + (p * np.log(p)).sum(axis=1, keepdims=True) / np.log(5)
        largest = p.max(axis=1, keepdims=True)
        features = np.concatenate([p, largest, certainty, scores], axis=1)
        kernel, bias = layer.score.get_weights()
        scores = np.concatenate(
            [scores, sigmoid(features @ kernel + bias)], axis=1
        )
        kernel, bias = layer.wish.get_weights()
        wishes = np.concatenate([wishes, features @ kernel + bias], axis=1)
        np.testing.assert_allclose(
            ops.convert_to_numpy(memory),
            np.concatenate([scores, wishes], axis=1),
            atol=1e-5,
        )
        np.testing.assert_allclose(
            ops.convert_to_numpy(found["confidence"]), scores[:, -1:], atol=1e-5
        )
        np.testing.assert_array_equal(
            ops.convert_to_numpy(found["prediction"]), given[i]
        )


def test_assignment_adds_two_terms():
    options = {"beta": 2.0, "kl_weight": 0.3, "budget_weight": 0.7}
    layer = Assignment(COSTS, 0.4, **options)
    scores = GENERATOR.uniform(0.1, 0.9, (4, 2))
    wishes = GENERATOR.normal(size=(4, 2))
    memory = np.concatenate([scores, wishes], axis=1).astype("float32")
    found = layer(LOGITS[2], memory=memory)["prediction"]
    np.testing.assert_array_equal(ops.convert_to_numpy(found), LOGITS[2])
    assert not layer.losses
    layer(LOGITS[2], memory=memory, training=True)
    (loss,) = layer.losses
    assigned = softmax(np.concatenate([wishes, np.zeros((4, 1))], axis=1))
    wanted = np.concatenate([scores, np.ones((4, 1))], axis=1) ** 2
    wanted = wanted / wanted.sum(axis=1, keepdims=True)
    kl = (assigned * np.log(assigned / wanted)).sum(axis=1).mean()
    shares = assigned.mean(axis=0)
    expected = 0.3 * kl + 0.7 * abs(shares @ COSTS - 0.4) / 0.4
    found = ops.convert_to_numpy(loss).item()
    assert found == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(
        ops.convert_to_numpy(layer.shares), 0.99 / 3 + 0.01 * shares, rtol=1e-5
    )


@pytest.mark.parametrize("one_hot", [True, False])
@pytest.mark.parametrize("weight", [None, np.array([2.0, 0.0, 0.5, 1.0])])
def test_value(one_hot, weight):
    p = softmax(LOGITS)
    scores = GENERATOR.uniform(0.1, 0.9, (2, 4, 1)).astype("float32")
    objective = ee.objectives.get("exit_scheduling")
    y = np.eye(5, dtype="float32")[Y] if one_hot else Y
    parts = objective(y, list(p), list(scores), COSTS, sample_weight=weight)
    factor = 1.0 if weight is None else weight
    expected = (factor * -np.log(p[:, np.arange(4), Y])).mean(axis=1).sum()
    found = float(parts["prediction_loss"])
    assert found == pytest.approx(expected, rel=1e-5)
    expected = 0.0
    for i in range(2):
        right = p[i].argmax(axis=1) == Y
        share = np.clip(right.mean(), 0.05, 0.95)
        g = scores[i, :, 0]
        entropy = np.where(
            right, -np.log(g) / share, -np.log(1 - g) / (1 - share)
        )
        expected += (factor * entropy / 2).mean()
    found = float(parts["confidence_loss"])
    assert found == pytest.approx(expected, rel=1e-5)
    assert float(parts["loss"]) == pytest.approx(
        float(parts["prediction_loss"]) + found, rel=1e-6
    )


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan")])
def test_bad_budget(budget):
    with pytest.raises(ValueError, match="mean relative cost above 0"):
        ee.objectives.get("exit_scheduling", budget=budget)


def build():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="tanh", name="first")(inputs)
    x = layers.Dense(8, activation="tanh", name="second")(x)
    outputs = layers.Dense(5, activation="softmax", name="head")(x)
    return ee.add_exits(keras.Model(inputs, outputs), ["first", "second"])


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(16, 6)).astype("float32")
    return x, x[:, :5].argmax(axis=1)


def test_exits_get_no_gradient_from_scores_and_assignment(data):
    """One step moves the exits as the plain sum of losses does."""
    after = []
    for objective in ("branchynet", "exit_scheduling"):
        model = build()
        model.compile(keras.optimizers.SGD(1.0), objective, run_eagerly=EAGER)
        model.train_on_batch(*data)
        after.append(
            {
                layer.name: layer.get_weights()[:2]
                for layer in model.net.layers
                if layer.name in ("first", "second", "head", "exit_0", "exit_1")
            }
        )
    for name, weights in after[0].items():
        for one, other in zip(weights, after[1][name], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6, err_msg=name)
    refiners = model.exit_graph.refiners
    for refiner in refiners[:-1]:
        assert ops.convert_to_numpy(refiner.score.bias).item() != 0.0
        assert ops.convert_to_numpy(refiner.wish.bias).item() != 0.0


def test_the_loss_has_the_terms_of_the_assignment(data):
    model = build()
    objective = ee.objectives.get(
        "exit_scheduling", budget=0.1, budget_weight=5.0
    )
    model.compile(keras.optimizers.SGD(0.0), objective)
    logs = model.train_on_batch(*data, return_dict=True)
    rest = logs["loss"] - logs["prediction_loss"] - logs["confidence_loss"]
    model.net(data[0], training=True)
    own = sum(ops.convert_to_numpy(loss).item() for loss in model.net.losses)
    assert own > 1.0
    assert rest == pytest.approx(own, rel=1e-3)


def test_shares_follow_the_assignment(data):
    model = build()
    model.compile("adam", "exit_scheduling")
    shares = model.objective.exit_shares(model)
    assert shares.tolist() == pytest.approx([1 / 3] * 3)
    model.fit(*data, epochs=2, batch_size=8, verbose=0)
    shares = model.objective.exit_shares(model)
    assert shares.sum() == pytest.approx(1.0)
    assert np.ptp(shares) > 0
