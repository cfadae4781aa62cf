"""Weighted sums of the exits' losses, and gradients that are scaled."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_earlyexit as ee

pytestmark = pytest.mark.backends_long

EAGER = keras.backend.backend() != "jax"
COSTS = [0.25, 0.5, 1.1]
GENERATOR = np.random.default_rng(7)
LOGITS = GENERATOR.normal(size=(3, 4, 5)).astype("float32")
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=-1, keepdims=True)
Y = np.array([0, 4, 2, 2])
CONFIDENCES = [np.full((4, 1), 0.5, "float32")] * 2
# Cross-entropy of every exit and sample: (exits, batch).
CE = -np.log(PROBABILITIES[:, np.arange(4), Y])

WEIGHTS = {
    "branchynet": [1.0, 1.0, 1.0],
    "pabee": [1 / 6, 2 / 6, 3 / 6],
    "sdn": [0.25, 0.5, 1.0],
    "gradient_equilibrium": [1.0, 1.0, 1.0],
}


def loss_of(objective, y=Y, predictions=PROBABILITIES, **options):
    parts = objective(y, list(predictions), CONFIDENCES, COSTS, **options)
    assert float(parts["cost_loss"]) == float(parts["confidence_loss"]) == 0
    return float(parts["prediction_loss"])


@pytest.mark.parametrize("name", WEIGHTS)
def test_weighted_sum(name):
    expected = WEIGHTS[name] @ CE.mean(axis=1)
    objective = ee.objectives.get(name)
    assert loss_of(objective) == pytest.approx(expected, rel=1e-5)
    one_hot = np.eye(5, dtype="float32")[Y]
    assert loss_of(objective, one_hot) == pytest.approx(expected, rel=1e-5)
    assert loss_of(objective, Y[:, None]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", WEIGHTS)
def test_logits_and_sample_weights(name):
    weight = np.array([2.0, 0.0, 0.5, 1.0])
    expected = WEIGHTS[name] @ (weight * CE).mean(axis=1)
    objective = ee.objectives.get(name, from_logits=True)
    found = loss_of(objective, predictions=LOGITS, sample_weight=weight)
    assert found == pytest.approx(expected, rel=1e-5)


def test_given_weights():
    expected = np.array([0.2, 0.0, 3.0]) @ CE.mean(axis=1)
    objective = ee.objectives.get("branchynet", weights=np.array([0.2, 0, 3]))
    assert loss_of(objective) == pytest.approx(expected, rel=1e-5)
    again = ee.objectives.get(keras.saving.serialize_keras_object(objective))
    assert loss_of(again) == pytest.approx(expected, rel=1e-5)
    expected = np.array([0.1, 0.9, 1.0]) @ CE.mean(axis=1)
    objective = ee.objectives.get("sdn", max_weights=[0.1, 0.9])
    assert loss_of(objective) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "name, options",
    [
        ("branchynet", {"weights": [1.0, 2.0]}),
        ("branchynet", {"weights": []}),
        ("sdn", {"max_weights": [1.0]}),
    ],
)
def test_wrong_number_of_weights(name, options):
    with pytest.raises(ValueError, match="weight for each of the 3 exits"):
        loss_of(ee.objectives.get(name, **options))


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_weights_that_are_none(bad):
    with pytest.raises(ValueError, match="`weights` to be numbers of 0 or"):
        ee.objectives.get("branchynet", weights=[1.0, bad, 1.0])
    with pytest.raises(ValueError, match="`max_weights` to be numbers"):
        ee.objectives.get("sdn", max_weights=[bad, 1.0])


@pytest.mark.parametrize("options", [{"distillation": 1.5}, {"temperature": 0}])
def test_bad_distillation(options):
    with pytest.raises(ValueError, match=r"`distillation` in \[0, 1\] and a"):
        ee.objectives.get("gradient_equilibrium", **options)


def test_inline_distillation():
    objective = ee.objectives.get(
        "gradient_equilibrium", distillation=0.25, temperature=2.0
    )
    soft = PROBABILITIES**0.5
    soft = soft / soft.sum(axis=-1, keepdims=True)
    divergence = 4.0 * (soft[2] * np.log(soft[2] / soft[:2])).sum(axis=-1)
    expected = 0.75 * CE[:2].mean(axis=1).sum() + CE[2].mean()
    expected += 0.25 * divergence.mean(axis=1).sum()
    assert loss_of(objective) == pytest.approx(expected, rel=1e-5)


def build():
    inputs = keras.Input((6,))
    x = inputs
    for i in range(3):
        x = layers.Dense(8, activation="tanh", name=f"dense_{i}")(x)
    outputs = layers.Dense(5, activation="softmax", name="head")(x)
    plain = keras.Model(inputs, outputs)
    return ee.add_exits(plain, ["dense_0", "dense_1"], copy=True)


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(16, 6)).astype("float32")
    return x, x[:, :5].argmax(axis=1)


def gradients(model, objective, data):
    """Gradient of each kernel, by the name of its layer."""
    before = model.get_weights()
    model.compile(keras.optimizers.SGD(1.0), objective, run_eagerly=EAGER)
    model.train_on_batch(*data)
    names = [v.path.split("/")[-2] for v in model.weights]
    names = [
        v.path.split("/")[-3] if name.endswith("branch") else name
        for v, name in zip(model.weights, names, strict=True)
    ]
    found = {
        name: old - new
        for name, variable, old, new in zip(
            names, model.weights, before, model.get_weights(), strict=True
        )
        if "confidence" not in variable.path and old.ndim == 2
    }
    model.set_weights(before)
    return found


def test_gradients_are_scaled_on_their_way_back(data):
    model = build()
    alone = [
        gradients(model, ee.objectives.get("branchynet", weights=w), data)
        for w in np.eye(3)
    ]
    found = gradients(model, "gradient_equilibrium", data)
    expected = {
        "dense_0": sum(g["dense_0"] for g in alone) / 3,
        "dense_1": sum(g["dense_1"] for g in alone) / 2,
        "dense_2": alone[2]["dense_2"],
        "exit_0": alone[0]["exit_0"],
        "exit_1": alone[1]["exit_1"],
        "head": alone[2]["head"],
    }
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        assert np.abs(gradient).max() > 1e-4
        np.testing.assert_allclose(found[name], gradient, atol=1e-6)
    outputs = model.net(data[0])
    trained = model.training_network(data[0], training=True)
    for name in outputs:
        np.testing.assert_allclose(
            ops.convert_to_numpy(trained[name]),
            ops.convert_to_numpy(outputs[name]),
            atol=1e-6,
        )


def test_weights_of_sdn_rise_with_the_epochs(data):
    model = build()
    model.compile(keras.optimizers.SGD(0.0), "sdn")
    outputs = model.net(data[0])
    losses = []
    for name in model.exit_names:
        p = ops.convert_to_numpy(outputs[name])
        losses.append(-np.log(p[np.arange(16), data[1]]).mean())
    largest = np.minimum(model.relative_costs[:2], 1.0)
    seen = model.fit(*data, batch_size=8, epochs=4, verbose=0).history
    for epoch, loss in enumerate(seen["prediction_loss"]):
        weights = np.minimum(largest, 0.01 + epoch / 4 * largest)
        expected = weights @ losses[:2] + losses[2]
        assert loss == pytest.approx(expected, rel=1e-4)
    # Outside of `fit` the weights are those of its end.
    logs = model.evaluate(*data, verbose=0, return_dict=True)
    expected = largest @ losses[:2] + losses[2]
    assert logs["prediction_loss"] == pytest.approx(expected, rel=1e-4)
