"""Segments: what a model with exits becomes when it is cut."""

import keras
import numpy as np
import pytest
import zoo

import keras_earlyexit as ee
from keras_earlyexit.splitting import partitioning

pytestmark = pytest.mark.backends_long


def check_segments(model, segments, x):
    """The merged answers of the segments are those of the model."""
    expected = {key: zoo.as_numpy(v) for key, v in model(x).items()}
    merged, crossing = {}, x
    for position, segment in enumerate(segments):
        found = dict(segment(crossing))
        last = position == len(segments) - 1
        assert ("feature" in found) == (not last)
        crossing = {
            key: found.pop(key) for key in ("feature", "memory") if key in found
        }
        if len(crossing) == 1:
            (crossing,) = crossing.values()
        assert not set(found) & set(merged)
        merged.update(found)
    assert set(merged) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(
            zoo.as_numpy(merged[key]), value, atol=1e-5, err_msg=key
        )


@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_kind_of_model(name):
    _, model = zoo.plain_and_early(name)
    x, _ = zoo.ZOO[name].batch(3)
    for exit_name in model.exit_names[:-1]:
        check_segments(model, ee.partition(model, exit_name), x)


def small_model(exits=3, **options):
    row = keras.Input((6,), name="row")
    x = row
    for i in range(4):
        x = keras.layers.Dense(8, activation="tanh", name=f"dense_{i}")(x)
    outputs = keras.layers.Dense(4, activation="softmax", name="head")(x)
    names = [f"dense_{i}" for i in range(exits)]
    model = ee.add_exits(keras.Model(row, outputs, name="small"), names)
    if options:
        model.compile("sgd", **options)
    return model


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(5, 6)).astype("float32")


def test_several_cuts(rows):
    model = small_model()
    segments = ee.partition(model, ["exit_0", "exit_2"])
    assert [sorted(segment.output) for segment in segments] == [
        ["exit_0", "exit_0_confidence", "feature"],
        [
            *("exit_1", "exit_1_confidence"),
            *("exit_2", "exit_2_confidence", "feature"),
        ],
        ["final"],
    ]
    check_segments(model, segments, rows)


@pytest.mark.parametrize(
    "objective, remembers",
    [
        ("zero_time_waste", True),
        ("boosted", True),
        ("exit_scheduling", True),
        ("jei", False),
        ("eenet_v3", False),
    ],
)
def test_what_refiners_remember_crosses_the_cut(objective, remembers, rows):
    model = small_model(objective=objective)
    for cuts in ("exit_0", ("exit_0", "exit_1"), ("exit_1", "exit_2")):
        segments = ee.partition(model, cuts)
        check_segments(model, segments, rows)
        assert ("memory" in segments[0].output) == remembers


def test_segments_share_the_weights(rows):
    model = small_model()
    segments = ee.partition(model, "exit_1")
    model.net.get_layer("dense_3").kernel.assign(np.ones((8, 8)))
    model.net.get_layer("dense_0").bias.assign(np.ones(8))
    check_segments(model, segments, rows)


def test_bounds():
    model = small_model()
    bounds = partitioning.segment_bounds(model, ("exit_0", "exit_1"))
    assert bounds == ((0, 0), (1, 1), (2, 3))


@pytest.mark.parametrize(
    "cuts, error, message",
    [
        ("exit_7", ValueError, "'exit_7' is unknown. Did you mean 'exit_"),
        ("nowhere", ValueError, "one of exit_0, exit_1, exit_2"),
        ("final", ValueError, "Behind 'final' nothing is left"),
        (("exit_0", "final"), ValueError, "Behind 'final' nothing is left"),
        (("exit_1", "exit_0"), ValueError, r"cuts=\['exit_0', 'exit_1'\]"),
        (("exit_1", "exit_1"), ValueError, r"Write cuts=\['exit_1'\]"),
        ((), TypeError, "Received: cuts=\\(\\)"),
        (1, TypeError, r"cuts=1 \(of type int\)"),
        (None, TypeError, "NoneType"),
        (["exit_0", 2], TypeError, "list with at least one"),
    ],
)
def test_wrong_cuts(cuts, error, message):
    with pytest.raises(error, match=message):
        ee.partition(small_model(), cuts)


def test_a_model_without_exits_is_refused():
    plain = ee.strip_exits(small_model())
    with pytest.raises(TypeError, match="Expected an EarlyExitModel"):
        ee.partition(plain, "exit_0")
