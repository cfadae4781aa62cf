"""Cascade and ensemble by hand; who learns when."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_earlyexit as ee
from keras_earlyexit.objectives.zero_time_waste import CascadeEnsemble

pytestmark = pytest.mark.backends_long

LOGITS = np.random.default_rng(5).normal(size=(3, 4, 5)).astype("float32")
Y = np.array([0, 4, 2, 2])


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def normalised(z):
    """Layer normalisation as it is before training, epsilon 0.001."""
    centred = z - z.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-3)


@pytest.mark.parametrize("logits", [True, False])
def test_answers_of_three_exits(logits):
    exits = [
        CascadeEnsemble(5, index, cascade=index < 2, from_logits=logits)
        for index in range(3)
    ]
    given = LOGITS if logits else softmax(LOGITS)
    for ensembling in (0.0, 1.0):
        memory, cascade = None, []
        for i, layer in enumerate(exits):
            confidence = None if i == 2 else np.full((4, 1), 0.3, "float32")
            found = layer(given[i], confidence=confidence, memory=memory)
            layer.ensembling.assign(ensembling)
            layer.log_weights.assign(np.linspace(-0.5, 0.5, i + 1))
            layer.bias.assign(np.linspace(0.0, 1.0, 5))
            found = layer(given[i], confidence=confidence, memory=memory)
            memory = found.get("memory")
            # The model's own exit is not told the answer before.
            z = LOGITS[i]
            if i == 1:
                (link,) = layer.link.get_weights()
                z = z + normalised(np.log(softmax(cascade[-1]))) @ link
            cascade.append(z)
            if ensembling:
                weights = np.exp(np.linspace(-0.5, 0.5, i + 1))
                parts = np.log(softmax(np.stack(cascade)))
                z = (weights[:, None, None] * parts).mean(axis=0)
                z = z + np.linspace(0.0, 1.0, 5)
            answer = ops.convert_to_numpy(found["prediction"])
            answer = softmax(answer) if logits else answer
            np.testing.assert_allclose(answer, softmax(z), atol=1e-5)
            assert ("confidence" in found) == (i < 2)


@pytest.mark.parametrize("logits", [True, False])
def test_value_of_bare_predictions(logits):
    objective = ee.objectives.get("zero_time_waste", from_logits=logits)
    given = list(LOGITS if logits else softmax(LOGITS))
    confidences = [np.full((4, 1), 0.5, "float32")] * 2
    weight = np.array([2.0, 0.0, 0.5, 1.0])
    ce = -np.log(softmax(LOGITS)[:, np.arange(4), Y])
    for y in (Y, np.eye(5)[Y]):
        found = objective(y, given, confidences, [0.2, 0.5, 1.0])
        expected = ce.mean(axis=1).sum()
        assert float(found["loss"]) == pytest.approx(expected, rel=1e-5)
        found = objective(
            y, given, confidences, [0.2, 0.5, 1.0], sample_weight=weight
        )
        expected = (weight * ce).mean(axis=1).sum()
        assert float(found["loss"]) == pytest.approx(expected, rel=1e-5)


def build():
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="tanh", name="first")(inputs)
    x = layers.Dense(8, activation="tanh", name="second")(x)
    outputs = layers.Dense(5, activation="softmax", name="head")(x)
    return ee.add_exits(keras.Model(inputs, outputs), ["first", "second"])


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(32, 6)).astype("float32")
    return x, x[:, :5].argmax(axis=1)


class Watch(keras.callbacks.Callback):
    """What moved in each epoch: names of weights, and who ensembles."""

    def __init__(self):
        super().__init__()
        self.moved, self.ensembling = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.before = self.model.net.get_weights()

    def on_epoch_end(self, epoch, logs=None):
        after = self.model.net.get_weights()
        self.moved.append(
            {
                variable.path
                for variable, old, new in zip(
                    self.model.net.weights, self.before, after, strict=True
                )
                if not np.array_equal(old, new)
            }
        )
        refiners = self.model.exit_graph.refiners
        self.ensembling.append(
            {ops.convert_to_numpy(r.ensembling).item() for r in refiners}
        )


def test_the_ensembles_learn_last_and_alone(data, tmp_path):
    model = build()
    model.compile(keras.optimizers.Adam(0.01), "zero_time_waste")
    watch = Watch()
    model.fit(*data, epochs=3, batch_size=16, callbacks=[watch], verbose=0)
    assert watch.ensembling == [{0.0}, {0.0}, {1.0}]
    refiners = model.exit_graph.refiners
    ensemble = {v.path for r in refiners for v in r.ensemble_weights}
    exits = {
        v.path
        for i in range(2)
        for v in model.net.get_layer(f"exit_{i}").prediction_branch.weights
    }
    cascade = {
        v.path for v in refiners[1].normalise.weights + refiners[1].link.weights
    }
    assert watch.moved[0] == watch.moved[1] == exits | cascade
    assert watch.moved[2] == ensemble
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for name, expected in model(data[0]).items():
        np.testing.assert_array_equal(
            ops.convert_to_numpy(loaded(data[0])[name]),
            ops.convert_to_numpy(expected),
        )


def test_bad_epochs():
    with pytest.raises(ValueError, match="0 or more, or None. Received"):
        ee.objectives.get("zero_time_waste", ensemble_epochs=-1)


@pytest.mark.parametrize(
    "epochs, given, last", [(1, None, 0), (2, None, 1), (6, None, 2), (4, 3, 3)]
)
def test_epochs_of_the_ensembles(epochs, given, last, data):
    model = build()
    objective = ee.objectives.get("zero_time_waste", ensemble_epochs=given)
    model.compile("sgd", objective)
    (callback,) = model.objective.callbacks(model)
    callback.set_model(model)
    callback.set_params({"epochs": epochs})
    seen = []
    for epoch in range(epochs):
        callback.on_epoch_begin(epoch)
        refiner = model.exit_graph.refiners[0]
        seen.append(ops.convert_to_numpy(refiner.ensembling).item())
    assert seen == [0.0] * (epochs - last) + [1.0] * last
