"""The deepest exit that fits a deadline answers."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers

import keras_earlyexit as ee


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="tanh", name="first")(inputs)
    x = layers.Dense(8, activation="tanh", name="second")(x)
    outputs = layers.Dense(3, activation="softmax")(x)
    model = ee.add_exits(keras.Model(inputs, outputs), ["first", "second"])
    model.policy = "max_probability"
    return model


@pytest.fixture
def anytime(model):
    """One that finds exit k to take k + 1 ms for each of 1 and 4 samples."""
    anytime = ee.Anytime(model, batch_sizes=(4, 1), repeats=1)
    milliseconds = np.array([1.0, 2.0, 3.0])
    anytime.milliseconds = {1: milliseconds, 4: 4 * milliseconds}
    return anytime


X = np.random.default_rng(0).normal(size=(9, 6)).astype("float32")


@pytest.mark.parametrize(
    ("deadline", "size", "depth"),
    [(0.5, 1, None), (1, 1, 0), (2.5, 1, 1), (9, 1, 2), (9, 3, 1), (17, 8, 1)],
)
def test_deepest_exit(anytime, deadline, size, depth):
    assert anytime.deepest_exit(deadline, size) == depth


def test_everybody_is_answered_at_that_exit(model, anytime):
    everywhere = model(X)
    for deadline, depth in ((1, 0), (2, 1), (3, 2)):
        result = anytime.predict_exits(X[:1], deadline)
        assert result.exit_index.tolist() == [depth]
        expected = keras.ops.convert_to_numpy(
            everywhere[model.exit_names[depth]]
        )
        np.testing.assert_allclose(result.predictions, expected[:1], atol=1e-6)


def test_leaving_before_is_up_to_the_policy(model, anytime):
    model.policy.threshold = (0.4, 0.9)
    result = anytime.predict_exits(X, 20.0, leave_early=True)
    alone = model.predict_exits(X).exit_index
    assert (result.exit_index == np.minimum(alone, 1)).all()
    assert len(set(result.exit_index)) == 2


def test_too_late_is_said(anytime):
    with pytest.warns(UserWarning, match="No exit answers 9 samples in 1 ms"):
        result = anytime.predict_exits(X, 1.0)
    assert (result.exit_index == 0).all()


def test_times_are_measured_by_exit_and_size(model):
    ticks = itertools.count()
    anytime = ee.Anytime(
        model, batch_sizes=(2,), repeats=3, clock=lambda: next(ticks)
    )
    assert anytime.milliseconds[2].tolist() == [1000.0, 1000.0, 1000.0]
    assert anytime.expected(1).tolist() == [1000.0, 1000.0, 1000.0]
    assert anytime.expected(4).tolist() == [2000.0, 2000.0, 2000.0]


def test_what_cannot_be_is_refused(model, anytime):
    with pytest.raises(ValueError, match="batch sizes of at least 1"):
        ee.Anytime(model, batch_sizes=(0, 4))
    with pytest.raises(ValueError, match="positive number of milliseconds"):
        anytime.predict_exits(X, 0)
    with pytest.raises(ValueError, match="shape"):
        anytime.predict_exits(X[:, :3], 5.0)
