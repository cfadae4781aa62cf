"""Every policy works in a model: routed, saved, and with refiners."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_earlyexit as ee
from keras_earlyexit.calibration import observe

pytestmark = [
    pytest.mark.backends_long,
    pytest.mark.filterwarnings("ignore:Policy .* reads the confidence"),
]

POLICIES = (
    "learned",
    "max_probability",
    "entropy",
    "margin",
    "patience",
    "joint_gate",
)
LONG = pytest.mark.long
OBJECTIVES = (
    None,
    pytest.param("boosted", marks=LONG),
    "zero_time_waste",
    pytest.param("jei", marks=LONG),
)


def rows(count=60):
    x = np.random.default_rng(1).normal(size=(count, 6)).astype("float32")
    return x, x[:, :4].argmax(axis=1)


def build(objective):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    x = inputs
    for i in range(4):
        x = layers.Dense(8, activation="tanh", name=f"dense_{i}")(x)
    outputs = layers.Dense(4, activation="softmax", name="head")(x)
    plain = keras.Model(inputs, outputs)
    model = ee.add_exits(plain, [f"dense_{i}" for i in range(3)])
    if objective is not None:
        model.compile("adam", objective)
        for refiner in model.exit_graph.refiners:
            for variable in getattr(refiner, "variables", ()):
                shape = variable.shape
                noise = np.random.default_rng(0).normal(size=shape)
                variable.assign(noise.astype("float32"))
    return model


def choose(model, name, x):
    """Sets a policy, with a threshold that parts the samples."""
    model.policy = name
    if name != "patience":
        scores = observe(model, x).scores[:, 0]
        model.policy.threshold = float(np.quantile(scores, 0.6))


@pytest.fixture(scope="module", params=OBJECTIVES)
def model(request):
    return build(request.param)


@pytest.mark.parametrize("name", POLICIES)
def test_routed_as_the_scores_say(model, name):
    x, _ = rows()
    choose(model, name, x)
    result = model.predict_exits(x)
    everywhere = model(x)
    answers = [ops.convert_to_numpy(everywhere[n]) for n in model.exit_names]
    expected = np.stack(answers)[result.exit_index, np.arange(len(x))]
    np.testing.assert_allclose(result.predictions, expected, atol=1e-5)
    # The same scores, from the answers of all exits at once.
    seen = observe(model, x)
    taken = seen.exit_index(model.policy.threshold)
    assert np.mean(taken == result.exit_index) > 0.95
    left = result.exit_index < 3
    given = seen.scores[np.flatnonzero(left), result.exit_index[left]]
    np.testing.assert_allclose(result.score[left], given, atol=1e-5)
    assert len(set(result.exit_index)) > 1
    # One by one.
    for i in range(5):
        alone = model.predict_exits(x[i : i + 1])
        np.testing.assert_allclose(
            alone.predictions[0], result.predictions[i], atol=1e-5
        )


@pytest.mark.parametrize("name", POLICIES)
def test_saved_with_the_model(model, name, tmp_path):
    x, _ = rows()
    choose(model, name, x)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.policy.get_config() == model.policy.get_config()
    before, after = model.predict_exits(x), loaded.predict_exits(x)
    assert (before.predictions == after.predictions).all()
    assert (before.exit_index == after.exit_index).all()


def test_a_policy_that_does_not_fit_changes_nothing():
    inputs = keras.Input((6,))
    x = layers.Dense(8, name="first")(inputs)
    outputs = layers.Dense(4, activation="softmax", name="head")(x)
    model = ee.add_exits(keras.Model(inputs, outputs), ["first"])
    model.policy = "max_probability"
    with pytest.raises(ValueError, match="at least two early exits"):
        model.policy = "patience"
    assert model.policy.name == "max_probability"


def test_patience_of_values():
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="tanh", name="first")(inputs)
    x = layers.Dense(8, activation="tanh", name="second")(x)
    plain = keras.Model(inputs, layers.Dense(2)(x))
    model = ee.add_exits(plain, ["first", "second"], task="regression")
    with pytest.raises(ValueError, match="Expected a `tolerance`"):
        model.policy = "patience"
    model.policy = ee.policies.get("patience", tolerance=0.5)
    x, _ = rows()
    first, second, _ = (
        ops.convert_to_numpy(model(x)[name]) for name in model.exit_names
    )
    alike = (np.abs(first - second) <= 0.5).all(axis=1)
    assert 0 < alike.sum() < len(x)
    result = model.predict_exits(x)
    assert (result.exit_index == np.where(alike, 1, 2)).all()
