"""Segments put together again are the model that was cut."""

import keras
import numpy as np
import pytest
from bundling import make_model
from zoo import NAMES as ZOO_NAMES
from zoo import ZOO, plain_and_early
from zoo import as_numpy as numbers

import keras_earlyexit as ee
from keras_earlyexit.cli import main

pytestmark = pytest.mark.backends_long


def rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 6)).astype("float32")
    return x, rng.integers(0, 4, 16)


def check_same(merged, model, x):
    expected, found = model(x), merged(x)
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(
            numbers(found[name]), numbers(value), atol=1e-6, err_msg=name
        )
    np.testing.assert_array_equal(merged.relative_costs, model.relative_costs)


@pytest.mark.parametrize("name", ZOO_NAMES)
def test_every_kind_of_model(name):
    _, model = plain_and_early(name)
    x, _ = ZOO[name].batch(3)
    try:
        segments = ee.split(model, "exit_0")
    except ValueError as error:
        assert "belong to one segment" in str(error)
        return
    check_same(ee.merge(*segments), model, x)


def test_after_training_it_is_the_segments_one_behind_the_other(tmp_path):
    x, y = rows()
    model = make_model(policy=None)
    model.policy.threshold = 0.7
    segments = ee.split(model, ("exit_0", "exit_1"))
    crossing = x
    for i, segment in enumerate(segments):
        segment.compile("adam")
        crossing = segment.learn(crossing, y).outputs.get("feature")
        segment.save(tmp_path / f"{i}.keras")
    loaded = [
        keras.models.load_model(tmp_path / f"{i}.keras") for i in range(3)
    ]
    merged = ee.merge(*loaded)
    expected, crossing = {}, x
    for segment in segments:
        found = segment(crossing)
        crossing = found.pop("feature", None)
        expected.update(found)
    found = merged(x)
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(
            numbers(found[name]), numbers(value), atol=1e-6
        )
    assert len(merged.weights) == len(model.weights)
    merged.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    check_same(again, merged, x)
    again.compile("sgd", "eenet_v3")
    assert again.predict(x).shape == (16, 4)


def test_policy_and_thresholds_are_kept():
    model = make_model(policy="max_probability")
    model.policy.threshold = [0.4, 0.6]
    merged = ee.merge(*ee.split(model, "exit_1"))
    assert merged.policy.name == "max_probability"
    assert merged.has_given_policy
    assert list(merged.policy.thresholds(2)) == [0.4, 0.6]


def test_measured_costs_are_kept():
    from keras_earlyexit.cost.measured import MeasuredCost

    model = make_model()
    model.use_cost(
        MeasuredCost(
            unit="milliseconds",
            batch_size=1,
            exits=(1.0, 2.0, 4.0),
            plain=3.5,
        )
    )
    merged = ee.merge(*ee.split(model))
    assert merged.measured_cost == model.measured_cost


def test_segments_of_other_models_are_refused():
    one, other = ee.split(make_model()), ee.split(make_model())
    with pytest.raises(ValueError, match="of one model"):
        ee.merge(one[0], other[1])


@pytest.mark.parametrize("order", [(), (1,), (1, 0), (0,), (0, 1, 1)])
def test_missing_or_misplaced_segments_are_refused(order):
    segments = ee.split(make_model())
    with pytest.raises(ValueError, match="in their order"):
        ee.merge(*(segments[i] for i in order))


def test_no_segment():
    with pytest.raises(TypeError, match="ee.split"):
        ee.merge(make_model())


def test_command(tmp_path, capsys):
    edge, cloud = ee.split(make_model())
    edge.save(tmp_path / "edge.keras")
    cloud.save(tmp_path / "cloud.keras")
    paths = [str(tmp_path / f"{x}.keras") for x in ("edge", "cloud", "model")]
    assert main(["merge", *paths[:2], "-o", paths[2], "--json"]) == 0
    assert '"exit_1"' in capsys.readouterr().out
    x, _ = rows()
    found = keras.models.load_model(paths[2])(x)
    assert set(found) >= {"exit_0", "exit_1", "final"}
    assert [p.name for p in tmp_path.glob(".*")] == []
    assert main(["merge", *paths[1::-1], "-o", paths[2]]) == 4
    assert "in their order" in capsys.readouterr().err
    assert main(["merge", *paths[:2], "-o", str(tmp_path / "x.h5")]) == 2
