"""Where to cut a model: what is read off it, predicted, chosen, refused."""

import dataclasses
import pathlib
import re
import time
import warnings

import keras
import numpy as np
import pytest
import zoo
from keras import layers

import keras_earlyexit as ee
from keras_earlyexit import profiling
from keras_earlyexit.cost.measured import Timing
from keras_earlyexit.cost.profiles import segment_name
from keras_earlyexit.planning import model_facts

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "planning.md"
LINK = ee.cost.Link(bits_per_second=1e6, round_trip_seconds=0.01)


def plain_model():
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(4, 3, padding="same", name="first")(inputs)
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.Conv2D(8, 3, padding="same", name="second")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    outputs = layers.Dense(3, activation="softmax", name="head")(x)
    return keras.Model(inputs, outputs, name="small")


@pytest.fixture(scope="module")
def plain():
    return plain_model()


@pytest.fixture(scope="module")
def model():
    return ee.add_exits(plain_model(), ["pool", "second"])


def profile_of(model, seconds=(1e-3, 2e-3, 3e-3), scale=1.0, training=()):
    """A made-up profile: seconds for each sample of each stage."""
    facts = model_facts.read(model)
    names, macs = facts.stage_names, facts.stage_macs
    if not facts.has_exits:
        names, macs, seconds = ["final"], [sum(macs)], [sum(seconds)]

    def timing(name, each, macs=None):
        return Timing(name, [scale * each * n for n in (1, 8)], macs=macs)

    return ee.cost.DeviceProfile(
        name=model.name,
        batch_sizes=(1, 8),
        stages=list(map(timing, names, seconds, macs)),
        training=[timing(name, each) for name, each in training],
    )


@pytest.fixture(scope="module")
def edge(model):
    return profile_of(model)


@pytest.fixture(scope="module")
def cloud(model):
    return profile_of(model, scale=0.1)


def test_every_exit_is_a_cut(model, edge, cloud):
    plan = ee.plan_cut(model, edge, cloud, LINK, (0.5, 0.25, 0.25))
    assert isinstance(plan, ee.Plan) and plan.exit_rates == (0.5, 0.25, 0.25)
    assert [(r.name, r.layer) for r in plan.cuts] == [
        ("exit_0", "pool"),
        ("exit_1", "second"),
    ]
    first, second = plan.cuts
    # Half of the samples go on: 4 x 4 x 4 numbers up, 3 numbers down.
    assert first.bytes_up == pytest.approx(0.5 * 4 * 4 * 4 * 4)
    assert first.bytes_down == pytest.approx(0.5 * 3 * 4)
    assert first.share == 0.5 and second.share == 0.25
    assert first.edge_seconds == pytest.approx(1e-3)
    assert first.link_seconds == pytest.approx(0.5 * (0.01 + 268 * 8 / 1e6))
    assert first.cloud_seconds == pytest.approx(1e-4 * (0.5 * 2 + 0.25 * 3))
    assert first.seconds == pytest.approx(
        first.edge_seconds + first.link_seconds + first.cloud_seconds
    )
    assert second.edge_seconds == pytest.approx(1e-3 + 0.5 * 2e-3)
    assert plan.row("edge").seconds == pytest.approx(1e-3 * (1 + 1 + 0.75))
    assert plan.row("cloud").bytes_up == 8 * 8


def test_a_batch_is_answered_in_one_go(model, edge, cloud):
    plan = ee.plan_cut(model, edge, cloud, LINK, batch_size=8)
    first = plan.cuts[0]
    assert first.link_seconds == pytest.approx(0.01 / 8 + 268 * 8 / 1e6)
    assert first.edge_seconds == pytest.approx(1e-3)
    assert "Without exit rates: nobody leaves early." in plan.notes


def test_codec_and_raw_inputs(model, edge, cloud):
    plan = ee.plan_cut(
        model, edge, cloud, LINK, bytes_per_element=0.5, input_bytes=1000
    )
    assert plan.cuts[0].bytes_up == pytest.approx(4 * 4 * 4 * 0.5)
    assert plan.row("cloud").bytes_up == 1000
    assert not any("raw sample" in note for note in plan.notes)


def test_best_follows_the_objective(model, edge, cloud):
    rates = (0.5, 0.25, 0.25)
    fast = ee.plan_cut(model, edge, cloud, LINK, rates)
    assert fast.best == min(fast.cuts, key=lambda row: row.seconds)
    few = ee.plan_cut(model, edge, cloud, LINK, rates, objective="bytes")
    assert few.best == min(few.cuts, key=lambda row: row.num_bytes)


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_a_faster_link_never_makes_it_send_less(model, mode):
    rng = np.random.default_rng(0)
    for _ in range(20):
        rates = rng.dirichlet(np.ones(3))
        edge, cloud = (
            profile_of(model, 1e-3 * rng.random(3), scale)
            for scale in (1, 10 * rng.random())
        )
        sent = []
        for bits_per_second in 10 ** np.arange(3.0, 11.0):
            link = ee.cost.Link(bits_per_second, 0.0)
            plan = ee.plan_cut(model, edge, cloud, link, rates, mode)
            sent.append(plan.best.bytes_up)
        assert sent == sorted(sent)


def test_memory_to_answer(model, edge, cloud):
    plan = ee.plan_cut(model, edge, cloud, LINK, batch_size=8)
    first = plan.cuts[0]
    stages = model.stages[0]
    assert first.parameter_bytes == 4 * stages.count_params()
    assert first.optimizer_bytes == 0
    # The widest step reads and writes 8 x 8 x 4 and 4 x 4 x 4 numbers.
    assert first.activation_bytes == 8 * 4 * (8 * 8 * 4 + 8 * 8)
    whole = plan.row("edge")
    assert whole.parameter_bytes == 4 * (model.count_params() - 9)
    assert plan.row("cloud").edge_bytes == 0
    limited = ee.plan_cut(
        model, edge, cloud, LINK, batch_size=8, memory_limit=first.edge_bytes
    )
    assert limited.best.name == "exit_0"
    assert limited.best.edge_bytes <= first.edge_bytes


def test_memory_to_train(plain):
    edge = profile_of(plain)
    plan = ee.plan_cut(plain, edge, edge, LINK, mode="train", batch_size=8)
    first = plan.row("first")
    assert first.parameter_bytes == 4 * (9 * 4 + 4)
    assert first.optimizer_bytes == 2 * first.parameter_bytes
    assert first.activation_bytes == 8 * 4 * (8 * 8 + 8 * 8 * 4)
    for optimizer, slots in (
        ("sgd", 0),
        (keras.optimizers.SGD(momentum=0.9), 1),
    ):
        plan = ee.plan_cut(
            plain, edge, edge, LINK, mode="train", optimizer=optimizer
        )
        first = plan.row("first")
        assert first.optimizer_bytes == slots * first.parameter_bytes


def test_training(model, edge, cloud):
    plan = ee.plan_cut(
        model, edge, cloud, LINK, mode="train", samples=81, batch_size=8
    )
    ways = [(r.way, r.name) for r in plan.rows]
    assert ways == [
        ("cut", "exit_0"),
        ("cut", "exit_1"),
        ("edge", "edge"),
        ("cloud", "cloud"),
        ("split_learning", "exit_0"),
        ("split_learning", "exit_1"),
    ]
    first = plan.row("exit_0", "cut")
    assert first.bytes_up == 8 * (4 * 4 * 4 * 4 + 4) and not first.bytes_down
    assert first.link_seconds == pytest.approx(8 * 2080 / 1e6)
    assert first.seconds == pytest.approx(3 * 8e-3)
    assert first.epoch_seconds == pytest.approx(
        10 * first.seconds
        + 8e-3
        + max(16e-3, 0.01 + first.link_seconds + first.cloud_seconds)
    )
    split = plan.row("exit_0", "split_learning")
    assert split.bytes_down == 8 * 4 * 4 * 4 * 4
    assert split.epoch_seconds == pytest.approx(11 * split.seconds)
    assert plan.row("cloud").bytes_up == 8 * (64 + 4)
    assert plan.row("edge").seconds == pytest.approx(3 * 8 * 6e-3)
    assert any("3 times the forward pass" in note for note in plan.notes)


def test_batches_one_by_one_take_longer(model, edge, cloud):
    options = {"mode": "train", "batch_size": 8}
    pipelined = ee.plan_cut(model, edge, cloud, LINK, **options)
    alone = ee.plan_cut(model, edge, cloud, LINK, pipelined=False, **options)
    for one, other in zip(alone.cuts, pipelined.cuts, strict=True):
        assert one.seconds > other.seconds


def test_who_is_sent_to_train(model, edge, cloud):
    def shares(forward, rates=(0.5, 0.4, 0.1)):
        plan = ee.plan_cut(
            model, edge, cloud, LINK, rates, "train", forward=forward
        )
        return [row.share for row in plan.cuts]

    assert shares("all") == [1, 1]
    assert shares("non_exited") == pytest.approx([0.625, 0.325])
    assert shares(0.3) == [0.3, 0.3]
    with pytest.raises(ValueError, match="`exit_rates` to tell who stays"):
        shares("non_exited", None)
    for wrong in ("some", 0, 1.5, True, None):
        with pytest.raises(ValueError, match="`forward` to be 'all'"):
            shares(wrong)


def test_measured_training_steps_are_taken(model, cloud):
    names = [("exit_0", "exit_0"), ("exit_0", "exit_1"), ("exit_0", "final")]
    measured = profile_of(
        model,
        training=[(segment_name(*ends), 0.5) for ends in names],
    )
    plan = ee.plan_cut(model, measured, cloud, LINK, mode="train")
    assert [row.edge_seconds for row in plan.cuts] == [4, 4]
    (note,) = [note for note in plan.notes if "forward pass" in note]
    assert note.startswith("Cloud: ")


def test_a_plain_model_has_every_legal_cut(plain):
    edge = profile_of(plain)
    plan = ee.plan_cut(plain, edge, edge, LINK)
    places = ee.placement.candidates(plain)
    assert [row.name for row in plan.cuts] == [place.name for place in places]
    for row, place in zip(plan.cuts, places, strict=True):
        assert row.edge_seconds == pytest.approx(6e-3 * place.fraction)
        total = row.edge_seconds + row.cloud_seconds
        assert total == pytest.approx(6e-3)
    assert plan.best.name == "mean"
    assert any("estimated from their MACs" in note for note in plan.notes)


def test_a_plain_model_takes_a_profile_of_it_with_exits(plain, model, edge):
    facts = model_facts.read(plain)
    whole = Timing("plain", (6e-3, 48e-3), macs=sum(facts.stage_macs))
    with_exits = dataclasses.replace(edge, plain=whole)
    plan = ee.plan_cut(plain, with_exits, with_exits, LINK)
    assert len(plan.cuts) == len(facts.cuts)


@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_kind_of_model(name):
    _, model = zoo.plain_and_early(name)
    facts = model_facts.read(model)
    macs = np.cumsum(facts.stage_macs) / model.plain_macs
    np.testing.assert_allclose(macs, model.relative_costs, rtol=1e-9)
    for mode in ("infer", "train"):
        profile = profile_of(model, [1e-3] * len(facts.stage_names))
        plan = ee.plan_cut(model, profile, profile, LINK, mode=mode)
        assert [row.name for row in plan.cuts] == list(model.exit_names[:-1])
        assert all(row.bytes_up > 0 for row in plan.cuts)
        memory = [row.edge_bytes for row in (*plan.cuts, plan.row("edge"))]
        assert memory == sorted(memory)
        assert ee.Plan.from_json(plan.to_json()) == plan


def test_what_a_policy_hands_on_crosses_too():
    more, less = (
        model_facts.read(
            ee.add_exits(plain_model(), ["pool", "second"], policy=policy)
        )
        .cuts[0]
        .other_bytes
        for policy in ("patience", "entropy")
    )
    assert more > 0 == less


def test_other_batch_sizes_are_said(model, edge, cloud):
    def notes(batch_size):
        return ee.plan_cut(
            model, edge, cloud, LINK, batch_size=batch_size
        ).notes

    assert "batches of 4 are interpolated; measured were 1, 8" in notes(4)[0]
    assert notes(4)[0].startswith("Edge and cloud: ")
    assert "in proportion to those of 8, the largest" in notes(16)[0]
    assert not any("batches" in note for note in notes(8))


@pytest.mark.parametrize(
    "rates",
    [
        (0.5, 0.5),
        (0.5, 0.5, 0.5),
        (1.5, -0.5, 0.0),
        (float("nan"), 0.5, 0.5),
        "many",
        [[0.5, 0.25, 0.25]],
        1.0,
    ],
)
def test_rates_are_shares_of_all_exits(model, edge, cloud, rates):
    with pytest.raises(ValueError, match="`exit_rates`.*Received"):
        ee.plan_cut(model, edge, cloud, LINK, rates)


def test_shares_of_a_result_are_rates(model, edge, cloud):
    x, _ = np.random.default_rng(0).random((2, 9, 8, 8, 1)).astype("float32")
    shares = model.predict_exits(x).exit_shares(3)
    plan = ee.plan_cut(model, edge, cloud, LINK, shares)
    assert plan.exit_rates == pytest.approx(tuple(shares))


def test_a_plain_model_has_no_exit_rates(plain):
    edge = profile_of(plain)
    with pytest.raises(ValueError, match="no exit rates for a model without"):
        ee.plan_cut(plain, edge, edge, LINK, (1.0,))


def test_profiles_of_other_models_are_refused(model, plain, edge, cloud):
    other = ee.add_exits(plain_model(), ["first", "second"], block="plain")
    with pytest.raises(ValueError, match="`cloud` to be a profile of 'small'"):
        ee.plan_cut(model, edge, profile_of(other), LINK)
    fewer = ee.add_exits(plain_model(), ["pool"])
    with pytest.raises(ValueError, match="`edge` to be a profile of 'small'"):
        ee.plan_cut(fewer, edge, cloud, LINK)
    with pytest.raises(ValueError, match=r"one of \d+ MACs. Received"):
        ee.plan_cut(plain, edge, cloud, LINK)
    unknown = [dataclasses.replace(x, macs=None) for x in edge.stages]
    named = dataclasses.replace(edge, stages=unknown)
    ee.plan_cut(model, named, cloud, LINK)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"mode": "dream"}, ValueError, "'infer' or 'train'. Received: 'dre"),
        ({"objective": "joy"}, ValueError, "'seconds' or 'bytes'"),
        ({"edge": "edge.json"}, TypeError, "`edge` to be a DeviceProfile"),
        ({"cloud": None}, TypeError, "`cloud` to be a DeviceProfile"),
        ({"link": 1e6}, TypeError, "`link` to be a Link"),
        ({"model": "m.keras"}, TypeError, "Expected a Keras model"),
        ({"batch_size": 0}, ValueError, "`batch_size` to be at least 1"),
        ({"batch_size": 1.5}, TypeError, "`batch_size` to be an integer"),
        ({"memory_limit": 0}, ValueError, "`memory_limit` to be above 0"),
        ({"bytes_per_element": 0}, ValueError, "`bytes_per_element`"),
        ({"input_bytes": -1}, ValueError, "`input_bytes`"),
        ({"samples": 0, "mode": "train"}, ValueError, "`samples`"),
        ({"optimizer": 3, "mode": "train"}, TypeError, "a Optimizer"),
    ],
)
def test_what_cannot_be_is_refused(model, edge, cloud, changed, error, message):
    given = {"model": model, "edge": edge, "cloud": cloud, "link": LINK}
    with pytest.raises(error, match=message):
        ee.plan_cut(**{**given, **changed})


def test_models_that_cannot_be_cut():
    inputs = keras.Input((4,))
    a, b = layers.Dense(2, name="a")(inputs), layers.Dense(2)(inputs)
    two = keras.Model(inputs, layers.Add()([a, b]), name="two")
    with pytest.raises(ValueError, match="at least one legal cut.*'two'"):
        model_facts.read(two)
    inputs = keras.Input((None, 4))
    x = layers.Dense(3)(layers.Dense(3)(inputs))
    free = keras.Model(inputs, layers.GlobalAveragePooling1D()(x))
    with pytest.raises(ValueError, match="whose shapes are known"):
        model_facts.read(free)


def test_training_steps_are_measured_without_a_trace(model):
    before = [keras.ops.convert_to_numpy(w).copy() for w in model.weights]
    with warnings.catch_warnings(action="error"):
        found = profiling.profile(model, (2,), repeats=1, training="sgd")
    assert [timing.name for timing in found.training] == [
        *("exit_0..exit_0", "exit_1..final"),
        *("exit_0..exit_1", "final..final"),
        "exit_0..final",
    ]
    assert found.training_seconds("exit_0", "final", 2) > 0
    assert found.training_seconds("exit_1", "exit_1", 2) is None
    assert "train exit_0..final" in str(found)
    assert ee.cost.DeviceProfile.from_json(found.to_json()) == found
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, keras.ops.convert_to_numpy(weight))
    plan = ee.plan_cut(model, found, found, LINK, mode="train")
    assert not any("forward pass" in note for note in plan.notes)
    assert plan.batch_size == 2


def test_training_steps_of_a_plain_model_and_of_a_bundle(plain):
    found = profiling.profile(plain, (2,), repeats=1, training=True)
    assert [timing.name for timing in found.training] == ["final..final"]
    plan = ee.plan_cut(plain, found, found, LINK, mode="train")
    whole = max(
        found.training_seconds("final", "final", 2), found.seconds("final", 2)
    )
    assert plan.row("edge").seconds == pytest.approx(whole)

    class Bundle:
        def predict_exits(self, x):
            return x

    with pytest.raises(ValueError, match="Expected a Keras model to measure"):
        profiling.profile(Bundle(), (1,), training=True)


def test_prediction_is_near_what_is_measured():
    """Loosely: this machine may be busy."""
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(32, 3, padding="same", name="first")(inputs)
    x = layers.Conv2D(32, 3, padding="same", name="second")(x)
    x = layers.GlobalAveragePooling2D()(x)
    outputs = layers.Dense(10, activation="softmax")(x)
    policy = ee.policies.get("entropy", threshold=float("inf"))
    model = ee.add_exits(keras.Model(inputs, outputs), ["first"], policy=policy)
    own = ee.cost.profile(model, (1, 16), repeats=5)
    plan = ee.plan_cut(model, own, own, ee.cost.Link(1e15, 0), batch_size=16)
    x = np.zeros((16, 32, 32, 3), "float32")
    measured = []
    for _ in range(7):
        start = time.perf_counter()
        model.predict_exits(x)
        measured.append(time.perf_counter() - start)
    ratio = 16 * plan.best.seconds / np.median(measured)
    assert 0.1 < ratio < 10


def test_the_guide_runs(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("edge", "cloud"):
        profile_of(model).save(f"{name}.json")
    x = np.zeros((4, 8, 8, 1), "float32")
    names = {"ee": ee, "model": model, "x": x}
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S):
        exec(block, names)
    assert "Where to cut 'small'" in capsys.readouterr().out
    assert names["profile"].training_seconds("exit_0", "final", 32) > 0
