"""One optimizer that runs several, each on its own group of variables."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_earlyexit as ee
from keras_earlyexit.optimizers import CompositeOptimizer, composite

pytestmark = pytest.mark.backends_long

BACKEND = keras.backend.backend()
EAGER = BACKEND != "jax"


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(32, 6)).astype("float32")
    return x, x[:, :4].argmax(axis=1)


def build():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="tanh", name="first")(inputs)
    x = layers.Dense(8, activation="tanh", name="second")(x)
    outputs = layers.Dense(4, activation="softmax", name="head")(x)
    return ee.add_exits(keras.Model(inputs, outputs), ["first", "second"])


def values(variables):
    return [ops.convert_to_numpy(v).copy() for v in variables]


def equal(some, others):
    return all(map(np.array_equal, some, others))


def changes(optimizer, data):
    """How far each group moves in one step of a model made anew."""
    model = build()
    model.compile(optimizer, "eenet_v3", regime="mixed", run_eagerly=EAGER)
    groups = model.composite_optimizer.groups
    before = {name: values(found) for name, found in groups.items()}
    model.train_on_batch(*data)
    return {
        name: [
            new - old for new, old in zip(values(v), before[name], strict=True)
        ]
        for name, v in groups.items()
    }


def test_optimizers_by_group(data):
    unit = changes(keras.optimizers.SGD(1.0), data)
    rates = {"backbone": 0.1, "exit": 0.5, "exit_1": 2.0, "final": 0.25}
    found = changes(
        {name: keras.optimizers.SGD(rate) for name, rate in rates.items()}, data
    )
    expected = {**rates, "exit_0": 0.5}
    del expected["exit"]
    assert set(found) == set(expected)
    for name, rate in expected.items():
        for change, step in zip(found[name], unit[name], strict=True):
            assert np.abs(step).max() > 1e-5
            np.testing.assert_allclose(change, rate * step, atol=1e-6)


@pytest.mark.parametrize(
    "names, message",
    [
        (["backbone", "exit"], "Expected an optimizer for the .* 'final'"),
        (["backbone", "exit", "final", "gates"], r"one for \['gates'\]"),
    ],
)
def test_optimizers_that_do_not_fit(names, message):
    with pytest.raises(ValueError, match=message):
        build().compile(dict.fromkeys(names, "sgd"), "eenet_v3")


def test_a_group_that_is_off_does_not_move(data):
    model = build()
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.1)
    model.compile(optimizer, "eenet_v3", regime="mixed", run_eagerly=EAGER)
    found = model.composite_optimizer
    model.train_on_batch(*data)
    found.active = found.active - {"exit_0"}
    found.frozen = frozenset(["backbone"])
    off = {"exit_0", "backbone"}
    assert {name for name in found.groups if not found.is_on(name)} == off
    before = {
        name: values(found.groups[name] + found.by_group[name].variables)
        for name in found.groups
    }
    model.use_training_step("test", "off")
    model.train_on_batch(*data)
    for name, old in before.items():
        new = values(found.groups[name] + found.by_group[name].variables)
        assert equal(new, old) == (name in off), name


def rates_of(optimizer):
    return {
        name: ops.convert_to_numpy(o.learning_rate).item()
        for name, o in optimizer.by_group.items()
    }


def uneven():
    model = build()
    rates = {"backbone": 0.01, "exit": 0.1, "final": 0.04}
    model.compile(
        {k: keras.optimizers.SGD(rate) for k, rate in rates.items()}, "eenet_v3"
    )
    return model


def test_setting_the_learning_rate_keeps_ratios():
    optimizer = uneven().optimizer
    names = ["backbone", "exit_0", "exit_1", "final"]
    assert list(rates_of(optimizer)) == names
    # Also after a rate of 0, as at the beginning of a warm-up.
    for rate in (0.02, 0.0, 0.0, 0.005):
        optimizer.learning_rate = rate
        found = ops.convert_to_numpy(optimizer.learning_rate).item()
        assert found == pytest.approx(rate)
        expected = [rate, 10 * rate, 10 * rate, 4 * rate]
        assert list(rates_of(optimizer).values()) == pytest.approx(expected)


def test_a_learning_rate_that_others_cannot_be_scaled_by():
    model = build()
    rates = {"backbone": 0.0, "exit": 0.1, "final": 0.1}
    model.compile(
        {k: keras.optimizers.SGD(rate) for k, rate in rates.items()}, "eenet_v3"
    )
    with pytest.raises(ValueError, match="above 0 in the first group, 'back"):
        model.optimizer.learning_rate = 0.1


def test_groups_with_rates_of_their_own():
    """Factors of one optimizer; several optimizers say their own."""
    model = build()
    objective = ee.objectives.get("jei", gate_rate=4.0)
    model.compile(keras.optimizers.SGD(0.1), objective)
    expected = dict.fromkeys(("backbone", "exit_0", "exit_1"), 0.1)
    assert rates_of(model.optimizer) == pytest.approx(
        {**expected, "gates": 0.4}
    )
    names = ("backbone", "exit", "gates")
    given = {name: keras.optimizers.SGD(0.1) for name in names}
    model.compile(given, objective)
    assert rates_of(model.optimizer) == pytest.approx(
        {**expected, "gates": 0.1}
    )


def test_a_schedule_with_a_factor():
    model = build()
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    model.compile(keras.optimizers.SGD(schedule), "jei")
    optimizer = model.composite_optimizer.by_group["gates"]
    assert float(optimizer.learning_rate) == pytest.approx(1.0)
    optimizer.iterations.assign(2)
    assert float(optimizer.learning_rate) == pytest.approx(0.25)
    again = type(optimizer).from_config(optimizer.get_config())
    again.iterations.assign(1)
    assert float(again.learning_rate) == pytest.approx(0.5)


def test_callbacks_that_set_the_learning_rate(data):
    model = uneven()
    plateau = keras.callbacks.ReduceLROnPlateau(
        "loss", factor=0.5, patience=1, min_delta=100.0
    )
    logs = model.fit(*data, epochs=3, callbacks=[plateau], verbose=0).history
    assert logs["learning_rate"] == pytest.approx([0.01, 0.01, 0.005])
    expected = [0.0025, 0.025, 0.025, 0.01]
    assert list(rates_of(model.optimizer).values()) == pytest.approx(expected)
    rising = keras.callbacks.LearningRateScheduler(lambda epoch: 0.01 * epoch)
    logs = model.fit(*data, epochs=2, callbacks=[rising], verbose=0).history
    assert np.isfinite(logs["loss"]).all()
    expected = [0.01, 0.1, 0.1, 0.04]
    assert list(rates_of(model.optimizer).values()) == pytest.approx(expected)


def test_a_saved_model_trains_on_as_if_it_had_not_been(data, tmp_path):
    model = build()
    # `min_delta` aside, momentum and counts of steps must be there again.
    model.compile(keras.optimizers.Adam(0.01), "eenet_v3", regime="disjoint")
    model.fit(*data, epochs=1, shuffle=False, verbose=0)
    model.optimizer.learning_rate = 0.02
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, CompositeOptimizer)
    assert equal(
        values(loaded.optimizer.variables), values(model.optimizer.variables)
    )
    for trained in (model, loaded):
        trained.fit(*data, epochs=1, shuffle=False, verbose=0)
    assert equal(loaded.get_weights(), model.get_weights())
    assert equal(
        values(loaded.optimizer.variables), values(model.optimizer.variables)
    )


def test_mixed_precision(data):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = build()
        model.compile(keras.optimizers.AdamW(0.01), "jei")
    finally:
        keras.config.set_dtype_policy("float32")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    inner = composite(model.optimizer)
    assert inner is model.composite_optimizer
    assert isinstance(inner, CompositeOptimizer)
    before = {name: values(v) for name, v in inner.groups.items()}
    model.fit(*data, epochs=2, batch_size=16, verbose=0)
    moved = {
        k for k, v in inner.groups.items() if not equal(values(v), before[k])
    }
    assert moved == {"gates", "exit_0", "exit_1"}
    model.optimizer.learning_rate = 0.5
    assert rates_of(inner) == pytest.approx(
        {"backbone": 0.5, "exit_0": 0.5, "exit_1": 0.5, "gates": 5.0}
    )


@pytest.mark.skipif(BACKEND == "torch", reason="Keras takes 1 on torch")
def test_several_steps_per_execution(data):
    weights = []
    for steps in (1, 2):
        model = build()
        model.compile(
            "adam", "branchynet", regime="disjoint", steps_per_execution=steps
        )
        model.fit(*data, batch_size=8, epochs=1, shuffle=False, verbose=0)
        assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 4
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_averages_reach_groups_that_have_learned(data):
    model = build()
    optimizer = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5)
    model.compile(optimizer, "branchynet", regime="disjoint")
    groups = model.composite_optimizer.groups
    before = {name: values(found) for name, found in groups.items()}
    model.fit(*data, epochs=2, batch_size=16, verbose=0)
    assert equal(values(groups["backbone"]), before["backbone"])
    average = model.composite_optimizer.by_group["exit_0"]
    average = average._model_variables_moving_average
    assert equal(values(groups["exit_0"]), values(average))
    assert not equal(values(groups["exit_0"]), before["exit_0"])


def test_an_optimizer_that_is_compiled_again(data):
    model = build()
    model.compile("adam", "branchynet", regime="disjoint")
    model.fit(*data, epochs=1, verbose=0)
    before = model.get_weights()
    model.compile(model.optimizer, "branchynet", regime="joint")
    model.fit(*data, epochs=1, verbose=0)
    kernel = model.net.get_layer("first").kernel
    index = [v is kernel for v in model.weights].index(True)
    assert not np.array_equal(model.get_weights()[index], before[index])


def test_config_round_trip():
    for given in ("adam", {"backbone": "sgd", "exit": "adam", "final": "sgd"}):
        optimizer = CompositeOptimizer(given)
        config = keras.saving.serialize_keras_object(optimizer)
        again = keras.saving.deserialize_keras_object(config)
        assert again.get_config() == optimizer.get_config()
