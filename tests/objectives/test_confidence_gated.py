"""Later exits learn from what earlier ones do not settle."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_earlyexit as ee

pytestmark = pytest.mark.backends_long

EAGER = keras.backend.backend() != "jax"
COSTS = [0.25, 0.5, 1.1]
# Probability of the right class, at three exits for four samples.
RIGHT = np.array([[0.95, 0.5, 0.2, 0.91], [0.3, 0.95, 0.1, 0.2], [0.9] * 4])
Y = np.array([0, 1, 0, 1])
ONE_HOT = np.eye(2)[Y]
PREDICTIONS = [
    (ONE_HOT * p[:, None] + (1 - ONE_HOT) * (1 - p[:, None])).astype("float32")
    for p in RIGHT
]
CONFIDENCES = [np.full((4, 1), 0.5, "float32")] * 2


def loss_of(y=Y, sample_weight=None, **options):
    objective = ee.objectives.get("confidence_gated", **options)
    parts = objective(
        y, PREDICTIONS, CONFIDENCES, COSTS, sample_weight=sample_weight
    )
    return float(parts["prediction_loss"])


@pytest.mark.parametrize("gate", ["soft", "hard"])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_value(gate, floor):
    settled = RIGHT if gate == "soft" else (RIGHT > 0.9).astype(float)
    left = [np.ones(4), 1 - settled[0], (1 - settled[0]) * (1 - settled[1])]
    losses = np.maximum(left, floor) * -np.log(RIGHT)
    options = {"gate": gate, "floor": floor}
    expected = pytest.approx(losses.mean(axis=1).sum(), rel=1e-5)
    assert loss_of(**options) == expected
    assert loss_of(ONE_HOT, **options) == expected
    weight = np.array([0.0, 2.0, 1.0, 0.5])
    expected = (weight * losses).mean(axis=1).sum()
    found = loss_of(sample_weight=weight, **options)
    assert found == pytest.approx(expected, rel=1e-5)


def test_threshold_of_the_hard_gate():
    settled = (RIGHT > 0.4).astype(float)
    left = [np.ones(4), 1 - settled[0], (1 - settled[0]) * (1 - settled[1])]
    expected = (left * -np.log(RIGHT)).mean(axis=1).sum()
    found = loss_of(gate="hard", threshold=0.4, floor=0.0)
    assert found == pytest.approx(expected, rel=1e-5)


def test_unknown_gate():
    with pytest.raises(ValueError, match="'hard' or 'soft'. Received: 'firm'"):
        ee.objectives.get("confidence_gated", gate="firm")


@pytest.mark.parametrize(
    "options", [{"threshold": 1.5}, {"floor": -0.1}, {"floor": float("nan")}]
)
def test_bad_options(options):
    with pytest.raises(ValueError, match=r"`threshold` and `floor` in \[0, 1"):
        ee.objectives.get("confidence_gated", **options)


def first_exit_after_a_step(objective):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="tanh", name="first")(inputs)
    x = layers.Dense(8, activation="tanh", name="second")(x)
    outputs = layers.Dense(5, activation="softmax", name="head")(x)
    model = ee.add_exits(keras.Model(inputs, outputs), ["first"])
    model.compile(keras.optimizers.SGD(1.0), objective, run_eagerly=EAGER)
    x = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    model.train_on_batch(x, x[:, :5].argmax(axis=1))
    block = model.net.get_layer("exit_0")
    return block.prediction_branch.get_weights()[0]


def test_an_exit_learns_nothing_from_how_far_it_settles_samples():
    np.testing.assert_allclose(
        first_exit_after_a_step("confidence_gated"),
        first_exit_after_a_step("branchynet"),
        atol=1e-6,
    )
