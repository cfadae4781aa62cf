"""What the early-exit model shows, saves and refuses."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_earlyexit as ee

pytestmark = pytest.mark.backends


def plain_model():
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(4, 3, activation="relu", name="conv_0")(inputs)
    x = layers.BatchNormalization(name="norm_0")(x)
    x = layers.Conv2D(6, 3, activation="relu", name="conv_1")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(3, activation="softmax", name="head")(x)
    return keras.Model(inputs, outputs, name="small")


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(32, 8, 8, 1)).astype("float32")
    return x, generator.integers(0, 3, 32)


@pytest.fixture(scope="module")
def trained(data):
    keras.utils.set_random_seed(0)
    model = ee.add_exits(plain_model(), ["norm_0"])
    model.compile(keras.optimizers.Adam(0.01), "eenet_v1", metrics=["accuracy"])
    model.fit(*data, epochs=2, verbose=0)
    model.policy.threshold = 0.45
    return model


def same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(a), ops.convert_to_numpy(b)
        )


def test_what_it_says_of_itself(trained):
    assert trained.exit_names == ("exit_0", "final")
    assert trained.exit_layers == ("norm_0",)
    # Convolutions 36 * 9 * 4 and 16 * 9 * 4 * 6, head 6 * 3, exit 4 * (3 + 1).
    first, plain = 36 * 36, 36 * 36 + 16 * 9 * 4 * 6 + 18
    assert trained.plain_macs == plain
    assert trained.relative_costs == pytest.approx(
        [(first + 16) / plain, (plain + 16) / plain]
    )


def test_costs_are_a_copy(trained):
    trained.relative_costs[:] = 0
    assert trained.relative_costs.min() > 0


def test_outputs_are_a_flat_dict(trained, data):
    outputs = trained(data[0])
    assert set(outputs) == {"exit_0", "exit_0_confidence", "final"}
    assert tuple(outputs["exit_0"].shape) == (32, 3)
    assert tuple(outputs["exit_0_confidence"].shape) == (32, 1)


def test_saving_is_exact_with_the_optimizer(trained, data, tmp_path):
    trained.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, ee.EarlyExitModel)
    same(loaded.get_weights(), trained.get_weights())
    same(loaded.optimizer.variables, trained.optimizer.variables)
    assert loaded.policy.get_config() == trained.policy.get_config()
    assert loaded.objective.get_config() == trained.objective.get_config()
    assert loaded.exit_layers == trained.exit_layers
    same([loaded.relative_costs], [trained.relative_costs])
    same([loaded.predict(data[0])], [trained.predict(data[0])])
    logs = [
        model.fit(*data, epochs=1, shuffle=False, verbose=0).history["loss"]
        for model in (trained, loaded)
    ]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("objective", ["eenet_v3", "eenet_v4", "two_stage"])
def test_saving_every_kind_of_objective(objective, data, tmp_path):
    model = ee.add_exits(plain_model(), 1, policy="max_probability")
    model.compile("adam", objective)
    model.fit(*data, epochs=1, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.objective) is type(model.objective)
    same(loaded.optimizer.variables, model.optimizer.variables)
    same(list(loaded(data[0]).values()), list(model(data[0]).values()))
    loaded.fit(*data, epochs=1, verbose=0)


def test_uncompiled_model_is_saved(data, tmp_path):
    model = ee.add_exits(plain_model(), 1, policy="max_probability")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.policy.name == "max_probability"
    loaded.compile("sgd", "eenet_v2")
    assert loaded.policy.name == "max_probability"


def test_policy_of_the_objective_is_replaced_after_loading(tmp_path):
    model = ee.add_exits(plain_model(), 1)
    model.compile("sgd", "eenet_v3")
    assert model.policy.threshold == 1.0
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.compile("sgd", "eenet_v2")
    assert loaded.policy.threshold == 0.5


def test_strip_exits(trained, data):
    stripped = ee.strip_exits(trained)
    final = trained(data[0])["final"]
    same([stripped(data[0])], [final])
    assert stripped.count_params() == plain_model().count_params()
    again = ee.add_exits(stripped, 1)
    same([again(data[0])["final"]], [final])


def test_stages_have_the_pinned_form(trained, data):
    first, last = trained.stages
    outputs = first(data[0])
    assert set(outputs) == {"feature", "prediction", "confidence", "score"}
    assert tuple(outputs["score"].shape) == (32,)
    assert set(last({"feature": outputs["feature"]})) == {"prediction"}
    np.testing.assert_allclose(
        ops.convert_to_numpy(last(outputs["feature"])["prediction"]),
        ops.convert_to_numpy(trained(data[0])["final"]),
        atol=1e-6,
    )


def test_setting_a_policy_rebuilds_the_stages(trained, data):
    before = trained.stages
    old = trained.policy
    trained.policy = "max_probability"
    assert trained.stages is not before
    outputs = trained.stages[0](data[0])
    np.testing.assert_allclose(
        ops.convert_to_numpy(outputs["score"]),
        ops.convert_to_numpy(outputs["prediction"]).max(axis=-1),
        atol=1e-6,
    )
    trained.policy = old


def test_threshold_per_exit_must_fit(trained):
    trained_policy = trained.policy
    with pytest.raises(ValueError, match="1, one per early exit.*3 thresholds"):
        trained.policy = ee.policies.get("learned", threshold=(0.1, 0.2, 0.3))
    assert trained.policy is trained_policy


def test_summary_shows_layers_and_exits(trained):
    lines = []
    trained.summary(print_fn=lines.append)
    text = "\n".join(lines)
    assert "conv_1" in text and "exit_0" in text
    assert "behind layer" in text and "norm_0" in text


def test_hand_built_network(data):
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, activation="relu")(inputs)
    prediction, confidence = ee.ExitBlock(3)(x)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3)(x))
    outputs = {
        "exit_0": prediction,
        "exit_0_confidence": confidence,
        "final": layers.Dense(3, activation="softmax")(x),
    }
    head = ee.tasks.Head(3, "softmax", "classification")
    model = ee.EarlyExitModel(keras.Model(inputs, outputs), head)
    model.compile("adam", "eenet_v2")
    model.fit(*data, epochs=1, verbose=0)
    assert model.predict(data[0]).shape == (32, 3)
    with pytest.raises(ValueError, match="needs a confidence at `final`"):
        model.compile("adam", "eenet_v3")


def test_network_without_exits_is_refused():
    head = ee.tasks.Head(3, "softmax", "classification")
    with pytest.raises(ValueError, match="dict of outputs `exit_0`"):
        ee.EarlyExitModel(plain_model(), head)


def test_exits_on_exits_are_refused(trained):
    with pytest.raises(TypeError, match="strip_exits"):
        ee.add_exits(trained)
    with pytest.raises(TypeError, match="Expected an EarlyExitModel"):
        ee.strip_exits(plain_model())
