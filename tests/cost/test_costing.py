"""Costs that are measured take the place of those that are counted."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

import keras_earlyexit as ee
from keras_earlyexit.cost.measured import MeasuredCost, Timing
from keras_earlyexit.cost.profiles import DeviceProfile

pytestmark = pytest.mark.backends_long

MEASURED = MeasuredCost("milliseconds", 1, (2.0, 4.5), 5.0)


def make_model(objective=None):
    inputs = keras.Input((64,), name="pixels")
    x = layers.Rescaling(1 / 16)(inputs)
    x = layers.Dense(16, activation="relu", name="first")(x)
    x = layers.Dense(32, activation="relu", name="second")(x)
    outputs = layers.Dense(10, activation="softmax", name="head")(x)
    plain = keras.Model(inputs, outputs, name="small")
    model = ee.add_exits(plain, ["first"], policy="max_probability")
    if objective is not None:
        model.compile("adam", objective)
    return model


def split(name):
    x, y = ee.datasets.load("digits", name)
    return x.reshape(len(x), 64).astype("float32"), y


def profile_of(model):
    """One in which a stage takes as many seconds as it is deep, by exit."""
    macs = [ee.cost.count(stage).macs for stage in model.stages]

    def timing(name, seconds, macs=None):
        joules = [3 * value + 1 for value in seconds]
        return Timing(name, seconds, joules=joules, macs=macs)

    return DeviceProfile(
        name=model.name,
        batch_sizes=(1, 3),
        stages=[
            timing(name, (1, 2), count)
            for name, count in zip(model.exit_names, macs, strict=True)
        ],
        exits=[timing("exit_0", (1, 2)), timing("final", (4, 6))],
        plain=timing("plain", (2, 4), model.plain_macs),
    )


@pytest.fixture
def model():
    return make_model()


def test_profile_gives_time_or_energy_over_the_plain_model(model):
    counted = model.relative_costs
    profile = profile_of(model)
    model.use_cost(profile)
    assert model.relative_costs.tolist() == [0.5, 2.0]
    assert model.measured_cost == profile.cost_of_exits()
    model.use_cost(profile, "milliseconds", batch_size=2)
    assert model.relative_costs == pytest.approx([1.5 / 3, 5 / 3])
    model.use_cost(profile, "joules")
    assert model.relative_costs == pytest.approx([4 / 7, 13 / 7])
    model.use_cost("macs")
    assert model.measured_cost is None
    np.testing.assert_array_equal(model.relative_costs, counted)
    model.use_cost("eenets")
    assert (model.cost, model.relative_costs[-1]) == ("eenets", 1)


def test_a_profile_of_the_model_itself_fits(model):
    times = iter([0, 1, 1, 3, 4, 5, 5, 9, 10, 12] * 2)
    profile = ee.cost.profile(model, (1,), repeats=2, clock=lambda: next(times))
    # Stages 1 and 2, exits 1 and 4, plain 2.
    model.use_cost(profile)
    assert model.relative_costs.tolist() == [0.5, 2.0]


def test_answers_cost_what_was_measured(model):
    x, _ = split("test")
    model.policy.threshold = 0.15
    model.use_cost(MEASURED)
    result = model.predict_exits(x)
    assert 0 < result.exit_index.mean() < 1
    assert result.relative_cost.tolist() == [
        [0.4, 0.9][exit_index] for exit_index in result.exit_index
    ]


def test_calibration_and_budgets_follow(model):
    x, y = split("calibration")
    model.compile("adam", "branchynet")
    model.fit(*split("train"), epochs=1, verbose=0)
    model.use_cost(MEASURED)
    report = ee.calibrate(model, x, y, epsilon=0.2)
    result = model.predict_exits(x)
    assert report.expected_relative_cost == pytest.approx(result.mean_cost)
    budget = ee.calibration.calibrate_budget(model, x, budget=0.6)
    assert model.predict_exits(x).mean_cost == pytest.approx(0.6, abs=0.01)
    assert budget.expected_relative_cost == pytest.approx(0.6, abs=0.01)
    seen = ee.calibration.observe(model, x, y)
    model.use_cost("macs")
    with pytest.raises(ValueError, match="Observe it again"):
        ee.calibrate(model, seen)


def test_compiled_steps_follow():
    """Also steps that were compiled with other costs before."""
    x, y = split("test")
    model = make_model("eenet_v2")
    model.policy.threshold = 0.15
    model.fit(x[:64], y[:64], epochs=1, verbose=0)
    before = model.evaluate(x, y, return_dict=True, verbose=0)
    shares = [before["exit_0_share"], before["final_share"]]
    assert before["mean_cost"] == pytest.approx(shares @ model.relative_costs)
    model.use_cost(MEASURED)
    after = model.evaluate(x, y, return_dict=True, verbose=0)
    assert after["mean_cost"] == pytest.approx(shares @ np.array([0.4, 0.9]))
    for name in ("prediction_loss", "exit_0_accuracy"):
        assert after[name] == before[name]
    routed = model.evaluate(x, y, return_dict=True, routed_only=True)
    assert routed["mean_cost"] == pytest.approx(after["mean_cost"], abs=1e-6)


def test_training_follows():
    """The cost loss doubles when all costs do, in a step compiled before."""
    x, y = split("train")
    costs = []
    for cost in (MEASURED, dataclasses.replace(MEASURED, plain=2.5)):
        keras.utils.set_random_seed(0)
        model = make_model("eenet_v1")
        model.optimizer.learning_rate = 0.0
        model.fit(x[:64], y[:64], batch_size=64, verbose=0)
        model.use_cost(cost)
        history = model.fit(x[:64], y[:64], batch_size=64, verbose=0).history
        costs.append(history["cost_loss"][0])
    assert costs[1] == pytest.approx(2 * costs[0], rel=1e-5)


def test_measured_costs_are_saved(tmp_path):
    model = make_model("branchynet")
    cost = MeasuredCost("joules", 2, (0.1, 1 / 3), 0.3)
    model.use_cost(cost)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.measured_cost == cost
    np.testing.assert_array_equal(loaded.relative_costs, model.relative_costs)
    x, y = split("test")
    logs = [
        m.evaluate(x, y, return_dict=True, verbose=0)["mean_cost"]
        for m in (model, loaded)
    ]
    assert logs[0] == logs[1]
    loaded.use_cost("macs")
    loaded.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.measured_cost is None


def test_layers_that_an_objective_adds_keep_what_was_measured(model):
    model.use_cost(MEASURED)
    model.compile("adam", "jei")
    assert model.relative_costs.tolist() == [0.4, 0.9]


def test_table_shows_what_was_measured(model):
    plain = model.exit_table()
    model.use_cost(MeasuredCost("milliseconds", 8, (1.2345, 4.5), 5.0))
    title, header, first, final = model.exit_table().splitlines()
    assert title.endswith(", cost for a batch of 8:")
    assert header.split("  ")[-2:] == ["milliseconds", "threshold"]
    assert first.split() == ["exit_0", "first", "0.2469", "1.234", "0.9"]
    assert final.split()[-3:] == ["0.9000", "4.5", "-"]
    model.use_cost("macs")
    assert model.exit_table() == plain


def test_profile_of_another_model_is_refused(model):
    profile = profile_of(model)
    before = model.relative_costs
    first, final = profile.stages
    others = [
        {"stages": [dataclasses.replace(first, macs=5), final]},
        {"plain": dataclasses.replace(profile.plain, macs=5)},
        {"stages": [first], "exits": profile.exits[:1]},
    ]
    for other in others:
        with pytest.raises(ValueError, match="Expected a profile of 'small'"):
            model.use_cost(dataclasses.replace(profile, **other))
    with pytest.raises(ValueError, match="seconds to each exit"):
        model.use_cost(dataclasses.replace(profile, exits=()))
    with pytest.raises(ValueError, match="one of macs, eenets"):
        model.use_cost("flops")
    with pytest.raises(ValueError, match="'milliseconds' or 'joules'"):
        model.use_cost(profile, "hours")
    with pytest.raises(ValueError, match="a cost for each of exit_0, final"):
        model.use_cost(MeasuredCost("joules", 1, (1, 2, 3), 3))
    for wrong in (None, 0.5, [0.4, 0.9]):
        with pytest.raises(TypeError, match="a DeviceProfile or a MeasuredC"):
            model.use_cost(wrong)
    np.testing.assert_array_equal(model.relative_costs, before)


def test_exits_are_placed_by_time():
    """As the guide does it: a callable that looks at measured times."""
    inputs = keras.Input((16,))
    x = inputs
    for k in range(4):
        x = layers.Dense(16, activation="relu", name=f"dense_{k}")(x)
    outputs = layers.Dense(3, activation="softmax", name="head")(x)
    plain = keras.Model(inputs, outputs)
    ends = [p.name for p in ee.placement.candidates(plain) if p.is_block_end]
    everywhere = ee.add_exits(plain, ends, copy=True)
    seconds = dict(zip(everywhere.exit_layers, (10, 20, 30, 95), strict=True))

    def by_time(ends, count):
        late = iter(ends)
        return [
            next(end for end in late if seconds[end.name] >= 100 * share)
            for share in np.arange(1, count + 1) / (count + 1)
        ]

    model = ee.add_exits(plain, 1, placement=by_time)
    assert model.exit_layers == ("dense_3",)
    linear = ee.add_exits(plain, 1, placement="linear")
    assert linear.exit_layers == ("dense_2",)
