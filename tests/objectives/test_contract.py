"""What every objective keeps to: its call, its config, and life in a model."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_earlyexit as ee
from keras_earlyexit.objectives.base import _registry
from keras_earlyexit.refining import same

pytestmark = pytest.mark.backends

# What is run once or twice is not worth compiling, but on JAX.
EAGER = keras.backend.backend() != "jax"
NAMES = _registry.names
BATCH, CLASSES, EXITS = 8, 10, 2
COSTS = [0.3, 1.0]
PARTS = ("prediction_loss", "cost_loss", "confidence_loss")


def arguments(saturated=False):
    generator = np.random.default_rng(4)
    predictions = generator.dirichlet(np.ones(CLASSES), (EXITS, BATCH))
    confidences = generator.uniform(0.1, 0.9, (EXITS, BATCH, 1))
    if saturated:
        predictions = np.eye(CLASSES)[generator.integers(0, 3, (EXITS, BATCH))]
        confidences = confidences.round()
    y = generator.integers(0, 3, BATCH)
    y[:4] = predictions[0, :4].argmax(axis=-1)
    predictions, confidences = (
        list(values.astype("float32")) for values in (predictions, confidences)
    )
    return y, predictions, confidences, COSTS


def tags_for(objective):
    if not objective.uses_exit_tags:
        return {}
    return {"exit_tags": np.arange(BATCH) % EXITS}


def check_call(objective):
    """Its parts and their sum, for any labels and the surest of answers."""
    y, *rest = arguments()
    found = {
        form: objective(labels, *rest, **tags_for(objective))
        for form, labels in {
            "integers": y,
            "column": y[:, None],
            "one_hot": np.eye(CLASSES)[y],
        }.items()
    }
    for parts in found.values():
        assert set(parts) == {"loss", *PARTS}
        numbers = {name: float(value) for name, value in parts.items()}
        assert numbers["loss"] == pytest.approx(
            numbers["prediction_loss"]
            + objective.cost_weight * numbers["cost_loss"]
            + numbers["confidence_loss"],
            rel=1e-5,
        )
        assert numbers["loss"] == pytest.approx(
            float(found["integers"]["loss"]), rel=1e-5
        )
        assert {n for n in PARTS if numbers[n]} <= set(objective.part_names)
    sure = objective(*arguments(saturated=True), **tags_for(objective))
    assert np.isfinite([float(value) for value in sure.values()]).all()
    with pytest.raises(ValueError, match="needs labels"):
        objective(None, *rest)
    with pytest.raises(ValueError, match="(?i)expected"):
        objective(y[:, None, None], *rest, **tags_for(objective))


def check_config(objective):
    config = keras.saving.serialize_keras_object(objective)
    again = ee.objectives.get(config)
    assert type(again) is type(objective)
    assert again.get_config() == objective.get_config()
    assert again.cost_weight == objective.cost_weight == 0.25


@pytest.mark.parametrize("name", NAMES)
def test_call_and_config(name):
    objective = ee.objectives.get(name, cost_weight=0.25)
    check_call(objective)
    check_config(objective)


@pytest.fixture(scope="module")
def digits():
    x, y = ee.datasets.load("digits", "train")
    return x[:64].astype("float32") / 16, y[:64]


def build():
    inputs = keras.Input((8, 8, 1))
    x = layers.Flatten()(inputs)
    x = layers.Dense(8, activation="relu", name="early")(x)
    outputs = layers.Dense(CLASSES, activation="softmax", name="head")(x)
    return ee.add_exits(keras.Model(inputs, outputs), ["early"])


def numbers(outputs):
    return {name: ops.convert_to_numpy(v) for name, v in outputs.items()}


def check_training(model, objective, data):
    model.compile("adam", objective)
    logs = model.fit(*data, batch_size=32, epochs=2, verbose=0).history
    accuracies = {f"{name}_accuracy" for name in model.exit_names}
    assert set(logs) == {"loss", *model.objective.part_names} | accuracies
    assert all(len(v) == 2 and np.isfinite(v).all() for v in logs.values())
    with pytest.raises(ValueError, match="Expected labels"):
        model.fit(data[0], verbose=0)


def check_saving(model, data, path):
    """It is the same, and trains on."""
    model.save(path)
    loaded = keras.models.load_model(path)
    outputs, expected = numbers(loaded(data[0])), numbers(model(data[0]))
    assert set(outputs) == set(expected)
    for name in outputs:
        np.testing.assert_array_equal(outputs[name], expected[name])
    assert type(loaded.objective) is type(model.objective)
    assert loaded.objective.get_config() == model.objective.get_config()
    assert loaded.regime.get_config() == model.regime.get_config()
    assert type(loaded.policy) is type(model.policy)
    ours, theirs = (m.optimizer.variables for m in (model, loaded))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(one), ops.convert_to_numpy(other)
        )
    loaded.run_eagerly = EAGER
    logs = loaded.fit(*data, batch_size=32, verbose=0).history
    assert np.isfinite(logs["loss"]).all()


def check_changes(model, objective, data):
    """Another objective leaves nothing of this one behind, and it returns."""
    refiners = model.exit_graph.refiners
    inputs = data[0]
    before = numbers(model(inputs))
    for other in ("branchynet", "boosted", objective):
        model.compile("sgd", other, run_eagerly=EAGER)
        layers_in_use = {id(v) for v in model.net.weights}
        assert {id(v) for v in model.weights} == layers_in_use
        assert len(model.weights) == len(layers_in_use)
        paths = [v.path for v in model.weights]
        assert len(set(paths)) == len(paths)
        expected = model.objective.refiners(model)
        assert same(model.exit_graph.refiners, expected)
        assert set(numbers(model(inputs))) >= {"exit_0", "final"}
    if any(refiners):
        logs = model.fit(*data, batch_size=32, verbose=0).history
        assert np.isfinite(logs["loss"]).all()
    else:
        # Nothing has been trained in between.
        for name, value in numbers(model(inputs)).items():
            np.testing.assert_array_equal(value, before[name])


# Its own policy reads confidences that it does not train, which is said.
@pytest.mark.filterwarnings("ignore:.*which objective 'eenet_v0' does not")
@pytest.mark.parametrize("name", NAMES)
def test_life_in_a_model(name, digits, tmp_path):
    model = build()
    check_training(model, name, digits)
    check_saving(model, digits, tmp_path / "model.keras")
    check_changes(model, name, digits)
