"""Stages, exits and energy are measured, with clocks that are handed in."""

import itertools
import pathlib
import re
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
from counting import CountRows, counted
from keras import layers, ops

import keras_earlyexit as ee
from keras_earlyexit import profiling
from keras_earlyexit.profiling import measuring

pytestmark = pytest.mark.backends_long

BACKEND = keras.backend.backend()


GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "cost.md"


def ticking():
    ticks = itertools.count()
    return lambda: next(ticks)


def plain_model():
    inputs = keras.Input((8, 8, 1), name="image")
    x = inputs / 16.0
    x = layers.Conv2D(4, 3, name="conv_0")(x)
    x = layers.BatchNormalization(name="norm_0")(x)
    x = layers.Conv2D(6, 3, activation="relu", name="conv_1")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(10, activation="softmax", name="head")(x)
    return keras.Model(inputs, outputs, name="small")


@pytest.fixture(scope="module")
def model():
    return ee.add_exits(plain_model(), ["norm_0"], policy="max_probability")


@pytest.fixture(scope="module")
def digits():
    return ee.datasets.load("digits", "test")[0]


def test_everything_of_a_model_is_measured(model, digits):
    weights = [ops.convert_to_numpy(w).copy() for w in model.weights]
    profile = ee.cost.profile(
        model, (9, 1), repeats=3, x=digits, clock=ticking()
    )
    assert isinstance(profile, ee.cost.DeviceProfile)
    assert profile.name == "small" and profile.batch_sizes == (1, 9)
    assert profile.stage_names == ("exit_0", "final")
    assert [timing.name for timing in profile.exits] == ["exit_0", "final"]
    for timing in (*profile.stages, *profile.exits, profile.plain):
        assert timing.seconds == timing.p95_seconds == (1.0, 1.0)
    assert profile.machine.backend == BACKEND
    assert f"keras {keras.__version__}" in profile.machine.versions
    for before, now in zip(weights, model.weights, strict=True):
        np.testing.assert_array_equal(before, ops.convert_to_numpy(now))
    assert ee.cost.DeviceProfile.from_json(profile.to_json()) == profile


def test_macs_of_the_stages_are_those_of_the_exits(model):
    profile = ee.cost.profile(model, (1,), repeats=1, clock=ticking())
    macs = np.array([stage.macs for stage in profile.stages])
    assert profile.plain.macs == model.plain_macs
    np.testing.assert_allclose(
        np.cumsum(macs) / model.plain_macs, model.relative_costs
    )


@pytest.mark.filterwarnings("ignore:The cost of early, late could not")
@pytest.mark.parametrize("rows", [2, 12])
def test_only_the_work_that_is_named_is_run(rows):
    """Rows through the first and the second part, by what is measured."""
    inputs = keras.Input((6,))
    x = CountRows(name="early")(layers.Dense(4)(inputs))
    x = layers.Dense(5)(CountRows(name="late")(x))
    plain = keras.Model(inputs, layers.Softmax()(x))
    model = ee.add_exits(plain, ["early"], policy="max_probability")
    seen = []

    def clock():
        seen.append(counted())
        return float(len(seen))

    ee.cost.profile(model, (rows,), repeats=2, clock=clock)
    # A reading before and one behind each run; nothing runs between.
    runs = seen[1::2]
    assert not any(seen[2::2])
    early, late = {"early": rows}, {"late": rows}
    both = {**early, **late}
    assert runs == 2 * [early, late, early, both, both]


@pytest.mark.parametrize("policy", ["patience", "joint_gate"])
def test_policies_that_hand_something_on(policy, digits):
    model = ee.add_exits(plain_model(), 2, policy=policy)
    profile = ee.cost.profile(model, (2,), repeats=1, clock=ticking())
    assert len(profile.stages) == len(profile.exits) == 3


def test_objectives_that_put_layers_at_the_exits():
    model = ee.add_exits(plain_model(), 2)
    model.compile("adam", "jei")
    profile = ee.cost.profile(model, (2,), repeats=1, clock=ticking())
    assert profile.stages[0].macs > 0
    assert profile.plain.macs == model.plain_macs


def test_several_inputs():
    inputs = {
        "left": keras.Input((3,), name="left"),
        "right": keras.Input((2,), name="right"),
    }
    x = layers.Concatenate()([inputs["left"], inputs["right"]])
    x = layers.Dense(4, activation="relu", name="first")(x)
    outputs = layers.Dense(3, activation="softmax")(x)
    model = ee.add_exits(keras.Model(inputs, outputs), ["first"])
    x = {"left": np.ones((2, 3)), "right": np.ones((2, 2))}
    for samples in (None, x):
        profile = ee.cost.profile(
            model, (3,), repeats=1, x=samples, clock=ticking()
        )
        assert len(profile.exits) == 2
    with pytest.raises(ValueError, match="one array for each"):
        ee.cost.profile(model, (3,), x=x["left"])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="subclassed")
        self.dense = layers.Dense(3)

    def call(self, x):
        return self.dense(x)


def test_plain_models_are_one_stage(digits):
    plain = plain_model()
    profile = ee.cost.profile(plain, (1, 2), repeats=1, clock=ticking())
    assert profile.stage_names == ("final",) and not profile.exits
    assert profile.stages[0].macs == ee.cost.count(plain).macs
    assert profile.exit_seconds("final", 2) == 1.0
    subclassed = Subclassed()
    with pytest.raises(ValueError, match="inputs are not known"):
        ee.cost.profile(subclassed, (1,))
    x = digits.reshape(len(digits), -1).astype("float32")
    profile = ee.cost.profile(subclassed, (2,), repeats=1, x=x, clock=ticking())
    assert profile.name == "subclassed" and profile.stages[0].macs == 64 * 3


def test_texts_are_samples_too():
    if BACKEND != "tensorflow":
        pytest.skip("only TensorFlow has texts")
    lookup = layers.TextVectorization(output_sequence_length=4)
    lookup.adapt(["one two three"])
    inputs = keras.Input((1,), dtype="string")
    x = layers.Embedding(8, 4)(lookup(inputs))
    outputs = layers.Dense(2)(layers.Flatten()(x))
    plain = keras.Model(inputs, outputs)
    for x in (None, np.array([["one two"], ["three"]])):
        profile = ee.cost.profile(plain, (3,), repeats=1, x=x)
        assert len(profile.stages) == 1


class Clock:
    """Stands still but for the work of a `Bundle`."""

    def __init__(self):
        self.now, self.slow, self.folder = 0.0, 1.0, None

    def __call__(self):
        return self.now

    def work(self, seconds):
        self.now += seconds * self.slow
        if self.folder is not None:
            counter = self.folder / "energy_uj"
            microjoules = int(counter.read_text()) + round(3e6 * seconds)
            counter.write_text(str(microjoules))


class Bundle:
    """Its stages take 1, 2 and 3 seconds a sample, routing 0.5."""

    exit_names = ("exit_0", "exit_1", "final")

    def __init__(self, clock):
        def entry(index):
            spec = types.SimpleNamespace(
                name="image", shape=(None, 4, None), dtype="float32"
            )
            return types.SimpleNamespace(index=index, inputs=(spec,))

        self.manifest = types.SimpleNamespace(
            model_name="bundled",
            format="litert",
            stages=tuple(entry(index) for index in range(3)),
        )
        self.clock = clock
        self.calls = []
        self.stages = [lambda x, k=k: self.stage(k, x) for k in range(3)]

    def stage(self, k, arrays):
        self.calls.append(f"stage {k}")
        assert len(arrays) == (1 if k == 0 else 2)
        rows = len(arrays[0])
        self.clock.work((k + 1.0) * rows)
        crossing = np.zeros((rows, 2))
        if k == 2:
            return {"prediction": crossing}
        return {"feature": crossing, "carry": crossing, "prediction": crossing}

    def route(self, x, thresholds):
        assert x["image"].shape[1:] in ((4, 1), (4, 7))
        depth = int(np.isposinf(thresholds).sum())
        self.calls.append(f"exit {depth}")
        self.clock.work(0.5 + sum(range(1, depth + 2)) * len(x["image"]))

    def predict_exits(self, x, batch_size=None):
        assert batch_size == len(x)
        self.clock.work(4.0 * len(x))


def test_bundles_are_measured_round_after_round(tmp_path):
    clock = Clock()
    bundle = Bundle(clock)
    profile = ee.cost.profile(
        bundle, (1, 2), repeats=3, clock=clock, powercap=tmp_path
    )
    assert profile.name == "bundled" and profile.machine.backend == "litert"
    assert [t.seconds for t in profile.stages] == [(1, 2), (2, 4), (3, 6)]
    assert [t.seconds for t in profile.exits] == [
        (1.5, 2.5),
        (3.5, 6.5),
        (6.5, 12.5),
    ]
    assert profile.routing_seconds(2) == pytest.approx(0.5)
    assert profile.plain is None
    assert profile.stages[0].macs is profile.stages[0].joules is None
    once = [*(f"stage {k}" for k in range(3)), *(f"exit {k}" for k in range(3))]
    rounds = bundle.calls[-3 * len(once) :]
    assert rounds == 3 * once


def test_in_turn_with_something_else(tmp_path):
    """It stops before each round, and what is done there is not counted."""
    clock = Clock()
    bundle = Bundle(clock)
    rounds = measuring.in_turn(
        bundle, (1, 2), repeats=3, clock=clock, powercap=tmp_path
    )
    seen = []
    while True:
        try:
            seen.append(next(rounds))
        except StopIteration as end:
            profile = end.value
            break
        clock.work(100.0)
    assert seen == [1, 1, 1, 2, 2, 2]
    alone = ee.cost.profile(
        Bundle(clock), (1, 2), repeats=3, clock=clock, powercap=tmp_path
    )
    assert profile.stages == alone.stages and profile.exits == alone.exits


def test_a_machine_that_slows_down_for_a_while(tmp_path):
    """The median does not see it, and the slow tail does, of every stage."""
    clock = Clock()
    bundle = Bundle(clock)
    route, rounds = bundle.route, itertools.count()

    def routed(x, thresholds):
        route(x, thresholds)
        if not np.isfinite(thresholds).any() and np.isposinf(thresholds).all():
            # Warm-up and memory take 4 rounds; the seventh measured is slow.
            clock.slow = 10.0 if next(rounds) == 9 else 1.0

    bundle.route = routed
    profile = ee.cost.profile(
        bundle, (1,), repeats=10, clock=clock, powercap=tmp_path
    )
    for timing, seconds in zip(profile.stages, (1, 2, 3), strict=True):
        assert timing.seconds == (seconds,)
        assert timing.p95_seconds[0] > 2 * seconds


def test_segment_of_a_bundle():
    clock = Clock()
    bundle = Bundle(clock)
    bundle.manifest.stages = bundle.manifest.stages[:2]
    bundle.stages = bundle.stages[:2]
    profile = ee.cost.profile(bundle, (1,), repeats=1, clock=clock)
    assert profile.stage_names == ("exit_0", "exit_1")
    assert [t.seconds[0] for t in profile.exits] == [1.5, 3.5]


def test_bundle_that_only_answers():
    bundle = types.SimpleNamespace(
        predict_exits=Bundle(Clock()).predict_exits,
    )
    with pytest.raises(ValueError, match=r"`profile\(bundle, x=x\)`"):
        ee.cost.profile(bundle, (1,))
    clock = Clock()
    bundle.predict_exits = Bundle(clock).predict_exits
    profile = ee.cost.profile(
        bundle, (3,), repeats=1, x=np.ones((2, 5)), clock=clock
    )
    assert profile.stage_names == ("final",)
    assert profile.seconds("final", 3) == 12.0


def test_energy_is_read_where_there_are_counters(tmp_path):
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "name").write_text("package-0")
    (zone / "energy_uj").write_text("0")
    (zone / "max_energy_range_uj").write_text("1000000")
    clock = Clock()
    clock.folder = zone
    profile = ee.cost.profile(
        Bundle(clock), (2,), repeats=1, clock=clock, powercap=tmp_path
    )
    assert [t.joules for t in profile.stages] == [(6,), (12,), (18,)]
    assert profile.exits[0].joules == pytest.approx((7.5,))


def test_energy_that_is_lost_on_the_way(tmp_path):
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "name").write_text("package-0")
    (zone / "energy_uj").write_text("0")
    clock = Clock()
    bundle = Bundle(clock)
    route = bundle.route

    def routed(x, thresholds):
        route(x, thresholds)
        if bundle.calls.count("exit 0") > 5:
            (zone / "energy_uj").unlink(missing_ok=True)

    bundle.route = routed
    profile = ee.cost.profile(
        bundle, (1,), repeats=1, clock=clock, powercap=tmp_path
    )
    assert all(t.joules is None for t in profile.exits)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_sizes": ()}, ValueError, "at least one batch size"),
        ({"batch_sizes": (0,)}, ValueError, "at least 1"),
        ({"batch_sizes": (1.5,)}, TypeError, "an integer"),
        ({"batch_sizes": 4}, TypeError, "a sequence of integers"),
        ({"repeats": 0}, ValueError, "`repeats` to be at least 1"),
        ({"x": np.zeros((0, 8, 8, 1))}, ValueError, "at least one sample"),
        ({"x": np.zeros((2, 9, 9, 1))}, ValueError, "'image' of shape"),
        ({"x": np.full((2, 8, 8, 1), np.nan)}, ValueError, "NaN"),
    ],
)
def test_what_cannot_be_measured_is_refused(model, arguments, error, message):
    with pytest.raises(error, match=message):
        ee.cost.profile(model, **{"batch_sizes": (1,), **arguments})


def test_only_models_and_bundles_are_measured():
    for thing in (None, "model.keras", layers.Dense(3)):
        with pytest.raises(TypeError, match="a Keras model or a bundle"):
            ee.cost.profile(thing, (1,))


WITHOUT_KERAS = """
import sys
import numpy as np
from keras_earlyexit.profiling import profile
from keras_earlyexit.cost.profiles import DeviceProfile

class Bundle:
    def predict_exits(self, x, batch_size=None):
        return x

found = profile(Bundle(), (1, 2), repeats=1, x=np.ones((1, 3)))
assert DeviceProfile.from_json(found.to_json()) == found
assert not {"keras", "tensorflow", "jax", "torch"} & set(sys.modules)
"""


def test_bundles_are_measured_without_keras():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_KERAS],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(BACKEND != "tensorflow", reason="once is enough")
def test_examples_of_the_guide(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plain = ee.backbones.eenet8(2, (8, 8, 1), 10)
    names = {"ee": ee, "plain": plain, "model": ee.add_exits(plain, copy=True)}
    # Every run takes longer than the one before, and so do later exits.
    ticks = (float(tick) ** 2 for tick in itertools.count())
    defaults = profiling.profile.__kwdefaults__
    monkeypatch.setitem(defaults, "clock", lambda: next(ticks))
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S):
        exec(block, names)
    assert "milliseconds" in capsys.readouterr().out
    assert len(names["timed"].exit_layers) == 2
