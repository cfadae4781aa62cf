"""A search from a plain model to a tuned one, on real data."""

import dataclasses
import re

import keras
import numpy as np
import pytest
from keras import layers

import keras_earlyexit as ee
from keras_earlyexit.cost.measured import Timing
from keras_earlyexit.planning import model_facts
from keras_earlyexit.tuning import candidates, costs, problem

LINK = ee.cost.Link(bits_per_second=1e6, round_trip_seconds=0.01)


def data(split):
    x, y = ee.datasets.load("digits", split)
    return x.astype("float32") / 16, y


def plain_model(num_convolutions=3):
    inputs = keras.Input((8, 8, 1), name="image")
    x = inputs
    for i in range(num_convolutions):
        x = layers.Conv2D(
            8, 3, padding="same", activation="relu", name=f"conv{i}"
        )(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    outputs = layers.Dense(10, activation="softmax", name="head")(x)
    return keras.Model(inputs, outputs, name="small")


@pytest.fixture(scope="module")
def plain():
    keras.utils.set_random_seed(0)
    model = plain_model()
    model.compile(
        keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy"
    )
    model.fit(*data("train"), epochs=12, verbose=0)
    return model


@pytest.fixture(scope="module")
def trained(plain):
    keras.utils.set_random_seed(0)
    return ee.tuning.train_candidates(
        plain,
        *data("train"),
        epochs=6,
        optimizer=keras.optimizers.Adam(3e-2),
        verbose=0,
    )


@pytest.fixture(scope="module")
def found(trained):
    return ee.tuning.search_exits(trained, *half(0), max_cost=0.9, verbose=0)


def half(number):
    x, y = data("calibration")
    rows = slice(number, None, 2)
    return x[rows], y[rows]


def test_points_are_what_their_models_do(found):
    x, y = half(0)
    assert found.best in found.front
    assert found.best.cost <= 0.9 and found.gap == 0
    for point in (found.best, found.front[-1]):
        model = found.build(point)
        assert model.exit_layers == point.exits
        result = model.predict_exits(x)
        assert result.mean_cost == pytest.approx(point.cost)
        right = result.predictions.argmax(axis=1) == y
        assert right.mean() == pytest.approx(point.accuracy)


def test_each_place_has_its_best_block_or_none(plain, tmp_path):
    keras.utils.set_random_seed(0)
    found = ee.tuning.search_exits(
        plain,
        *half(0),
        train=data("train"),
        block=["pool", "token", lambda feature: layers.Flatten()(feature)],
        epochs=1,
        thresholds="own",
        max_cost=0.9,
        verbose=0,
    )
    # A token block fits none of these places.
    places = found.model.exit_layers
    assert places[::2] == places[1::2] == ("conv0", "conv1")
    chosen = set()
    for point in found.front:
        assert len(set(point.exits)) == len(point.exits)
        own = [("pool", "custom")[i % 2] for i in point.candidates]
        assert list(point.blocks) == own
        chosen |= set(own)
    result = found.build().predict_exits(half(0)[0])
    assert result.mean_cost == pytest.approx(found.best.cost)
    assert chosen == {"pool", "custom"}
    assert f"{found.best.exits[0]} ({found.best.blocks[0]}) >" in str(found)
    figure = found.plot(tmp_path / "front.png")
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "exit with a custom block" in words


def test_backbone_is_left_alone(plain, trained):
    x, _ = half(0)
    np.testing.assert_allclose(
        trained.net.predict(x, verbose=0)["final"],
        plain.predict(x, verbose=0),
        atol=1e-5,
    )


def test_own_thresholds_are_no_worse(trained, found):
    own = ee.tuning.search_exits(
        trained,
        *half(0),
        thresholds="own",
        max_cost=0.9,
        max_exits=2,
        levels=10,
        time_limit=60,
        verbose=0,
    )
    assert own.best.accuracy >= found.best.accuracy
    assert own.best.cost <= 0.9 and own.gap == 0
    assert len(own.best.exits) <= 2 or own.best == found.best


def test_calibration_and_test_are_on_other_samples(found):
    model, report = found.calibrate(
        *half(1), epsilon=0.3, delta=0.2, risk="performance_gap"
    )
    assert model.policy.threshold == report.threshold
    with pytest.raises(ValueError, match="test samples .* the search"):
        found.measure(*half(0))
    with pytest.raises(ValueError, match="test samples .* the calibration"):
        found.measure(*half(1))
    with pytest.raises(ValueError, match="calibration samples .* training"):
        found.calibrate(*data("train"))
    x, y = data("test")
    (there,) = found.measure(x, y, [found.best])
    result = found.build().predict_exits(x)
    assert there.cost == pytest.approx(result.mean_cost)
    # What is chosen by hand remembers the search as well.
    with pytest.raises(ValueError, match="trained on"):
        ee.calibrate(found.build(), half(0)[0])


def test_own_thresholds_are_calibrated_along_a_path(found):
    scores = found.problem.scores
    point = dataclasses.replace(
        found.best,
        exits=found.model.exit_layers[:2],
        candidates=(0, 1),
        thresholds=(
            float(np.quantile(scores[:, 0], 0.8)),
            float(np.quantile(scores[:, 1], 0.5)),
        ),
    )
    _, report = found.calibrate(*half(1), point=point, epsilon=0.9)
    assert report.threshold == pytest.approx(point.thresholds)


def test_training_samples_are_refused(trained):
    with pytest.raises(ValueError, match="used for the training"):
        ee.tuning.search_exits(trained, *data("train"), verbose=0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_cost": 0.001}, "costs at most 0.001.* cheapest there is: cost"),
        ({"min_accuracy": 1.0}, "most accurate there is: cost .* plain model"),
    ],
)
def test_what_cannot_be_met_names_the_best(trained, options, says):
    for thresholds in ("shared", "own"):
        with pytest.raises(ValueError, match=says):
            ee.tuning.search_exits(
                trained,
                *half(0),
                thresholds=thresholds,
                levels=4,
                time_limit=5,
                verbose=0,
                **options,
            )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_cost": 0.5, "min_accuracy": 0.5}, "`max_cost` or"),
        ({"max_cost": -1.0}, "at least 0"),
        ({"thresholds": "free"}, "'shared' or 'own'"),
        ({"levels": 1}, "at least 2"),
    ],
)
def test_options_that_cannot_be(trained, options, says):
    with pytest.raises(ValueError, match=says):
        ee.tuning.search_exits(trained, *half(0), **options)


def test_models_that_cannot_be_searched(plain, trained):
    with pytest.raises(TypeError, match="train="):
        ee.tuning.search_exits(plain, *half(0))
    with pytest.raises(TypeError, match="epochs"):
        ee.tuning.search_exits(trained, *half(0), epochs=3)
    with pytest.raises(TypeError, match="cost="):
        ee.tuning.search_exits(trained, *half(0), cost="joules")
    patient = ee.add_exits(plain_model(), 2, policy="patience")
    with pytest.raises(ValueError, match="scores each exit by itself"):
        ee.tuning.search_exits(patient, *half(0))


def test_no_place_says_what_the_best_is():
    inputs = keras.Input((4,))
    plain = keras.Model(inputs, layers.Dense(3, activation="softmax")(inputs))
    with pytest.raises(ValueError, match="itself, at a relative cost of 1"):
        candidates.attach(plain)


def test_candidates_are_spread_over_the_macs():
    plain = plain_model(8)
    three = candidates.attach(plain, 3, ["pool", "conv"])
    assert three.exit_layers[0] == "conv0"
    assert len(set(three.exit_layers)) == 3 and len(three.exit_layers) == 6
    with pytest.raises(ValueError, match="candidates"):
        candidates.attach(plain, 0)


def test_interrupted_runs_go_on(plain, tmp_path, monkeypatch):
    options = {"train": data("train"), "epochs": 1, "candidates": 2}
    options |= {"directory": tmp_path, "verbose": 0}
    first = ee.tuning.search_exits(plain, *half(0), **options)
    names = sorted(path.name.split("-")[0] for path in tmp_path.iterdir())
    assert names == ["candidates"] * 2 + ["observed"] * 2

    def never(*args, **kwargs):
        pytest.fail("it is there already")

    with monkeypatch.context() as patch:
        patch.setattr(ee.EarlyExitModel, "fit", never)
        patch.setattr("keras_earlyexit.tuning.searching.observe", never)
        again = ee.tuning.search_exits(plain, *half(0), **options)
    assert again.front == first.front
    with pytest.raises(ValueError, match="used for the training"):
        again.measure(*data("train"))
    (kept,) = tmp_path.glob("observed-*.npz")
    kept.write_bytes(kept.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="is damaged"):
        mended = ee.tuning.search_exits(plain, *half(0), **options)
    assert mended.front == first.front


def profile_of(model, scale):
    facts = model_facts.read(model)
    stages = [
        Timing(name, (scale * (k + 1) * 1e-3,), macs=macs)
        for k, (name, macs) in enumerate(
            zip(facts.stage_names, facts.stage_macs, strict=True)
        )
    ]
    whole = sum(stage.seconds[0] for stage in stages)
    plain = Timing("plain", (0.8 * whole,), macs=model.plain_macs)
    exits = [
        Timing(name, (sum(s.seconds[0] for s in stages[: k + 1]),))
        for k, name in enumerate(facts.stage_names)
    ]
    return ee.cost.DeviceProfile(model.name, (1,), stages, exits, plain)


@pytest.mark.parametrize("objective", ["seconds", "bytes"])
def test_with_a_cut_costs_are_those_of_the_plan(trained, objective):
    edge, cloud = profile_of(trained, 1.0), profile_of(trained, 0.1)
    split = ee.tuning.Split(edge, cloud, LINK, objective)
    found = ee.tuning.search_exits(trained, *half(0), cost=split, verbose=0)
    assert found.unit == objective
    assert all(
        point.cut in ("edge", "cloud", *point.exits) for point in found.front
    )
    # All candidates chosen: the plan of the model itself.
    count = found.problem.num_candidates
    seen = ee.calibration.observe(trained, *half(0), verbose=0)
    plan = ee.plan_cut(
        trained, edge, cloud, LINK, exit_rates=seen.exit_shares(0.2)
    )
    names = {row.layer or row.name: row for row in plan.rows}
    for k, costing in enumerate(found.problem.costings):
        there = problem.evaluate(found.problem, range(count), [0.2] * count, k)
        row = names[costing.label]
        wanted = row.seconds if objective == "seconds" else row.num_bytes
        assert there.cost == pytest.approx(wanted)


def test_measured_time_is_a_cost(trained):
    profile = profile_of(trained, 1.0)
    found = ee.tuning.search_exits(
        trained, *half(0), cost=profile, max_cost=4.0, verbose=0
    )
    assert found.unit == "milliseconds" and found.best.cost <= 4.0
    model = found.build()
    assert model.measured_cost.unit == "milliseconds"
    mean = model.predict_exits(half(0)[0]).mean_cost
    assert mean * found.plain.cost == pytest.approx(found.best.cost)
    everything = costs.read(trained, profile).costings[0]
    blocks = everything.blocks.cumsum()
    np.testing.assert_allclose(
        everything.prefix + blocks,
        [1000 * exit_.seconds[0] for exit_ in profile.exits[:-1]],
    )
    assert trained.measured_cost is None


def test_picture(found, tmp_path):
    test = found.measure(*data("test"))
    found.plot(tmp_path / "front.png", test)
    assert (tmp_path / "front.png").stat().st_size > 5000
    assert "proven to be the best" in str(found)


class Batches(keras.utils.PyDataset):
    """Four batches an epoch, the third of which fails in some epoch."""

    def __init__(self, fails_in=None):
        super().__init__()
        self.reached, self.fails_in = 0, fails_in

    def __len__(self):
        return 4

    def __getitem__(self, index):
        self.reached += index == 2
        if index == 2 and self.reached == self.fails_in:
            raise RuntimeError("interrupted")
        x, y = data("train")
        return x[index::4], y[index::4]


def test_training_goes_on_from_the_last_whole_epoch(plain, tmp_path, capsys):
    options = {"epochs": 3, "directory": tmp_path, "verbose": 2}
    # What a backend makes of an error in its data is its own affair.
    with pytest.raises(Exception, match="interrupted"):
        ee.tuning.train_candidates(plain, Batches(fails_in=2), **options)
    assert "Epoch 1/3" in capsys.readouterr().out
    trained = ee.tuning.train_candidates(plain, Batches(), **options)
    assert re.findall("Epoch ./3", capsys.readouterr().out) == [
        "Epoch 2/3",
        "Epoch 3/3",
    ]
    kept = ee.tuning.train_candidates(plain, Batches(fails_in=1), **options)
    x, _ = half(0)
    one, other = (
        model.net.predict(x, verbose=0)["exit_0"] for model in (trained, kept)
    )
    np.testing.assert_allclose(one, other, atol=1e-6)
