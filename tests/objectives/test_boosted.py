"""Exits that add up: their sums by hand, in models, and their gradients."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_earlyexit as ee
from keras_earlyexit.objectives.boosted import Boosting

pytestmark = pytest.mark.backends_long

EAGER = keras.backend.backend() != "jax"
COSTS = [0.25, 0.5, 1.1]
LOGITS = np.random.default_rng(5).normal(size=(3, 4, 5)).astype("float32")
Y = np.array([0, 4, 2, 2])
CONFIDENCES = [np.full((4, 1), 0.5, "float32")] * 2


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def sums(logits, rate):
    """F_i = z_i + r F_{i-1}."""
    found = [logits[0]]
    for z in logits[1:]:
        found.append(z + rate * found[-1])
    return np.stack(found)


def expected_loss(rate, weight=1.0):
    ce = -np.log(softmax(sums(LOGITS, rate))[:, np.arange(4), Y])
    return (weight * ce).mean(axis=1).sum()


def loss_of(y=Y, logits=False, sample_weight=None, **options):
    objective = ee.objectives.get("boosted", from_logits=logits, **options)
    predictions = list(LOGITS if logits else softmax(LOGITS))
    parts = objective(
        y, predictions, CONFIDENCES, COSTS, sample_weight=sample_weight
    )
    return float(parts["prediction_loss"])


@pytest.mark.parametrize("rate", [1.0, 0.5])
@pytest.mark.parametrize("logits", [True, False])
def test_value(rate, logits):
    options = {"rate": rate, "logits": logits}
    expected = pytest.approx(expected_loss(rate), rel=1e-5)
    assert loss_of(**options) == expected
    assert loss_of(np.eye(5)[Y], **options) == expected
    weight = np.array([2.0, 0.0, 0.5, 1.0])
    expected = expected_loss(rate, weight)
    found = loss_of(sample_weight=weight, **options)
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_rate_of_zero_is_the_plain_sum():
    plain = ee.objectives.get("branchynet")
    parts = plain(Y, list(softmax(LOGITS)), CONFIDENCES, COSTS)
    expected = float(parts["prediction_loss"])
    assert loss_of(rate=0.0) == pytest.approx(expected, rel=1e-5)


def test_impossible_answers_stay_finite():
    boosting = Boosting()
    sure = ops.convert_to_tensor([[1.0, 0.0]])
    wrong = ops.convert_to_tensor([[0.0, 1.0]])
    first = boosting(sure, confidence=sure[:, :1])
    second = boosting(wrong, confidence=None, memory=first["memory"])
    found = ops.convert_to_numpy(second["prediction"])
    np.testing.assert_allclose(found, [[0.5, 0.5]], atol=1e-6)
    assert set(second) == {"prediction"}


def build(head="softmax", **options):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="tanh", name="first")(inputs)
    x = layers.Dense(8, activation="tanh", name="second")(x)
    outputs = layers.Dense(5, activation=head, name="head")(x)
    plain = keras.Model(inputs, outputs)
    return ee.add_exits(plain, ["first", "second"], **options)


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(16, 6)).astype("float32")
    return x, x[:, :5].argmax(axis=1)


def test_a_model_answers_with_the_sums(data, tmp_path):
    model = build()
    plain = model.net(data[0])
    plain = [ops.convert_to_numpy(plain[name]) for name in model.exit_names]
    model.compile("sgd", ee.objectives.get("boosted", rate=0.5))
    expected = softmax(sums(np.log(plain), 0.5))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for answering in (model, loaded):
        outputs = answering(data[0])
        for name, probabilities in zip(model.exit_names, expected, strict=True):
            found = ops.convert_to_numpy(outputs[name])
            np.testing.assert_allclose(found, probabilities, atol=1e-6)
        answering.policy = ee.policies.get("max_probability", threshold=2.0)
        found = answering.predict(data[0], verbose=0)
        np.testing.assert_allclose(found, expected[-1], atol=1e-6)
    logs = model.evaluate(*data, verbose=0, return_dict=True)
    losses = -np.log(expected[:, np.arange(16), data[1]])
    expected = losses.mean(axis=1).sum()
    assert logs["prediction_loss"] == pytest.approx(expected, rel=1e-5)


def first_exit_after_a_step(objective, data):
    model = build()
    model.compile(keras.optimizers.SGD(1.0), objective, run_eagerly=EAGER)
    model.train_on_batch(*data)
    block = model.net.get_layer("exit_0")
    return block.prediction_branch.get_weights()[0]


def test_no_gradient_from_later_exits_into_earlier_ones(data):
    alone = ee.objectives.get("branchynet", weights=[1.0, 0.0, 0.0])
    np.testing.assert_allclose(
        first_exit_after_a_step("boosted", data),
        first_exit_after_a_step(alone, data),
        atol=1e-6,
    )


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_models_that_have_no_classes(task):
    head = "sigmoid" if task == "multilabel" else None
    model = build(head, task=task)
    with pytest.raises(ValueError, match=f"whose exits add up.*{task} model"):
        model.compile("sgd", "boosted")
