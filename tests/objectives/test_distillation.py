"""The last exit teaches the earlier ones: values by hand, and gradients."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_earlyexit as ee

pytestmark = pytest.mark.backends_long

EAGER = keras.backend.backend() != "jax"
COSTS = [0.25, 0.5, 1.1]
GENERATOR = np.random.default_rng(3)
LOGITS = GENERATOR.normal(size=(3, 4, 5)).astype("float32")
Y = np.array([0, 4, 2, 2])
CONFIDENCES = [np.full((4, 1), 0.5, "float32")] * 2


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def expected_loss(alpha, temperature, weight=1.0):
    ce = -np.log(softmax(LOGITS)[:, np.arange(4), Y])
    soft = softmax(LOGITS / temperature)
    kl = (soft[2] * np.log(soft[2] / soft[:2])).sum(axis=-1)
    early = (1 - alpha) * ce[:2] + alpha * temperature**2 * kl
    return (weight * np.concatenate([early, ce[2:]])).mean(axis=1).sum()


def loss_of(objective, y, predictions, **options):
    parts = objective(y, list(predictions), CONFIDENCES, COSTS, **options)
    assert float(parts["loss"]) == float(parts["prediction_loss"])
    return float(parts["prediction_loss"])


@pytest.mark.parametrize("alpha, temperature", [(0.1, 3.0), (0.7, 1.0)])
@pytest.mark.parametrize("logits", [True, False])
def test_value(alpha, temperature, logits):
    objective = ee.objectives.get(
        "self_distillation",
        alpha=alpha,
        temperature=temperature,
        from_logits=logits,
    )
    given = LOGITS if logits else softmax(LOGITS)
    expected = pytest.approx(expected_loss(alpha, temperature), rel=1e-5)
    assert loss_of(objective, Y, given) == expected
    assert loss_of(objective, np.eye(5)[Y], given) == expected


def test_sample_weights():
    weight = np.array([2.0, 0.0, 0.5, 1.0])
    objective = ee.objectives.get("self_distillation")
    found = loss_of(objective, Y, softmax(LOGITS), sample_weight=weight)
    expected = expected_loss(0.1, 3.0, weight)
    assert found == pytest.approx(expected, rel=1e-5)


def test_alpha_of_zero_is_the_plain_sum():
    given = softmax(LOGITS)
    found = loss_of(ee.objectives.get("self_distillation", alpha=0), Y, given)
    plain = ee.objectives.get("branchynet")
    assert found == pytest.approx(loss_of(plain, Y, given), rel=1e-6)


@pytest.mark.parametrize("logits", [True, False])
def test_labels_that_are_independent(logits):
    y = GENERATOR.integers(0, 2, (4, 5)).astype("float32")
    p = 1 / (1 + np.exp(-LOGITS))
    ce = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(axis=-1)
    soft = 1 / (1 + np.exp(-LOGITS / 3.0))
    kl = soft[2] * np.log(soft[2] / soft[:2])
    kl += (1 - soft[2]) * np.log((1 - soft[2]) / (1 - soft[:2]))
    expected = ce[2].mean()
    expected += (0.9 * ce[:2] + 0.9 * kl.mean(axis=-1)).mean(axis=1).sum()
    objective = ee.objectives.get(
        "self_distillation", task="multilabel", from_logits=logits
    )
    found = loss_of(objective, y, LOGITS if logits else p)
    assert found == pytest.approx(expected, rel=1e-4)


def test_values():
    y = GENERATOR.normal(size=(4, 5)).astype("float32")
    squared = np.square(LOGITS - y).mean(axis=-1)
    taught = np.square(LOGITS[:2] - LOGITS[2]).mean(axis=-1)
    expected = squared[2].mean()
    expected += (0.9 * squared[:2] + 0.1 * taught).mean(axis=1).sum()
    objective = ee.objectives.get("self_distillation", task="regression")
    assert loss_of(objective, y, LOGITS) == pytest.approx(expected, rel=1e-5)


def test_impossible_probabilities_stay_finite():
    sure = np.zeros((3, 4, 5), "float32")
    sure[:2, :, 0] = sure[2, :, 1] = 1.0
    objective = ee.objectives.get("self_distillation", alpha=0.5)
    assert np.isfinite(loss_of(objective, Y, sure))


@pytest.mark.parametrize(
    "options", [{"alpha": -0.1}, {"alpha": 1.5}, {"temperature": 0.0}]
)
def test_bad_options(options):
    with pytest.raises(ValueError, match=r"`alpha` in \[0, 1\] and a positive"):
        ee.objectives.get("self_distillation", **options)


def head_after_a_step(objective):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="tanh", name="first")(inputs)
    outputs = layers.Dense(5, activation="softmax", name="head")(x)
    model = ee.add_exits(keras.Model(inputs, outputs), ["first"])
    model.compile(keras.optimizers.SGD(1.0), objective, run_eagerly=EAGER)
    x = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    model.train_on_batch(x, x[:, :5].argmax(axis=1))
    return model.net.get_layer("head").get_weights()[0]


def test_the_teacher_learns_from_labels_alone():
    taught = ee.objectives.get("self_distillation", alpha=0.9)
    np.testing.assert_allclose(
        head_after_a_step(taught), head_after_a_step("branchynet"), atol=1e-6
    )
