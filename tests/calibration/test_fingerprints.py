"""Fingerprints of samples, and calibration that notices trained ones."""

import time
import types

import keras
import numpy as np
import pytest

import keras_earlyexit as ee
from keras_earlyexit.calibration import (
    Fingerprints,
    calibrate,
    fingerprints_of,
    observe,
)

pytestmark = pytest.mark.backends_long


def pixels(split):
    x, y = ee.datasets.load("digits", split)
    return x.astype("float32") / 16, y


def test_splits_of_real_data_do_not_overlap():
    seen = Fingerprints()
    train, _ = pixels("train")
    for start in range(0, len(train), 64):
        seen.add(train[start : start + 64])
    assert len(seen) == len(np.unique(train.reshape(1000, -1), axis=0))
    assert seen.overlap(train) == 1.0
    for split in ("calibration", "test"):
        assert seen.overlap(pixels(split)[0]) == 0.0
    mixed = np.concatenate([train[:100], pixels("test")[0][:300]])
    assert seen.overlap(mixed) == 0.25


def test_the_smallest_change_gives_another_hash():
    generator = np.random.default_rng(0)
    base = np.repeat(generator.normal(size=(1, 8, 8)).astype("float32"), 65, 0)
    bits = base.view("uint32")
    for k in range(64):
        bits[k + 1].reshape(-1)[k] ^= np.uint32(1) << np.uint32(k % 32)
    assert len(np.unique(fingerprints_of(base))) == 65


def test_similar_samples_do_not_collide():
    # Small integers as floats: all but a few bits of each word are zero.
    grid = np.indices((40, 40, 40)).reshape(3, -1).T.astype("float32")
    hashes = fingerprints_of(grid)
    assert len(np.unique(hashes)) == len(grid)
    # A fair sample: any part of the range holds its share of them.
    shares = np.histogram(hashes / 2.0**64, 16, (0, 1))[0] / len(grid)
    np.testing.assert_allclose(shares, 1 / 16, atol=0.005)


def test_hashes_stay_what_they_were():
    # They are stored with models: another version must find them again.
    found = fingerprints_of(np.float32([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]))
    # Worked out with Python's own integers.
    assert found.tolist() == [13049788919358925347, 14405829528414427658]


def test_form_does_not_matter_but_order_does():
    x, _ = pixels("test")
    expected = fingerprints_of(x)
    tensor = keras.ops.convert_to_tensor(x)
    np.testing.assert_array_equal(fingerprints_of(tensor), expected)
    halves = {"a": x[:, :4], "b": x[:, 4:]}
    swapped = {"a": x[:, 4:], "b": x[:, :4]}
    np.testing.assert_array_equal(fingerprints_of(halves), expected)
    assert not np.any(fingerprints_of(swapped) == expected)
    padded = np.pad(x.reshape(400, 64), ((0, 0), (0, 9)))
    np.testing.assert_array_equal(fingerprints_of(padded), expected)
    assert fingerprints_of(x[:0]).shape == (0,)


@pytest.mark.parametrize("dtype", ["uint8", "bool", "int64", "float16"])
def test_every_type_of_input_has_hashes(dtype):
    x = (pixels("test")[0] * 16).astype(dtype)[:, :3, :3]
    different = np.unique(x.reshape(400, -1), axis=0)
    assert len(np.unique(fingerprints_of(x))) == len(different)


def test_strings_have_hashes():
    words = np.array([["good"], ["bad"], ["good"]], object)
    found = fingerprints_of(words)
    assert found[0] == found[2] != found[1]
    as_bytes = np.array([[b"good"], [b"bad"], [b"good"]], object)
    np.testing.assert_array_equal(fingerprints_of(as_bytes), found)


def test_a_part_is_kept_of_many_and_the_share_estimated():
    x = np.random.default_rng(0).normal(size=(40_000, 4)).astype("float32")
    seen = Fingerprints(capacity=5000)
    for start in range(0, 20_000, 1000):
        seen.add(x[start : start + 1000])
    assert len(seen) == 5000
    np.testing.assert_array_equal(
        seen.hashes, np.sort(fingerprints_of(x[:20_000]))[:5000]
    )
    assert seen.overlap(x[:20_000]) == 1.0
    assert seen.overlap(x[20_000:]) == 0.0
    assert seen.overlap(x[10_000:]) == pytest.approx(1 / 3, abs=0.02)


def test_state_makes_the_same_again():
    x, _ = pixels("train")
    seen = Fingerprints(capacity=700)
    seen.add(x)
    again = Fingerprints(seen.hashes, **seen.get_config())
    np.testing.assert_array_equal(again.hashes, seen.hashes)
    assert again.overlap(x) == 1.0 and again.capacity == 700
    assert Fingerprints().overlap(x) == 0.0


def test_mnist_sized_data_takes_a_fraction_of_a_second():
    x = np.random.default_rng(0).random((60_000, 28, 28, 1), "float32")
    fingerprints_of(x[:1])
    start = time.process_time()
    Fingerprints().add(x)
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Fingerprints(capacity=0), "`capacity` must be"),
        (lambda: Fingerprints([1, 2]), "`hashes` must be"),
        (lambda: Fingerprints().overlap_of(np.zeros((2, 2))), "`hashes`"),
        (lambda: fingerprints_of([]), "array \\(n, ...\\)"),
        (lambda: fingerprints_of(np.float32(1)), "array \\(n, ...\\)"),
        (lambda: fingerprints_of([np.ones(3), np.ones(4)]), "same length"),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(inputs)
    x = keras.layers.Conv2D(16, 3, activation="relu", name="middle")(x)
    x = keras.layers.Flatten()(x)
    outputs = keras.layers.Dense(10, activation="softmax")(x)
    model = ee.add_exits(keras.Model(inputs, outputs), ["middle"])
    model.policy = "max_probability"
    model.training_fingerprints = Fingerprints()
    model.training_fingerprints.add(pixels("train")[0])
    return model


# Every threshold is admissible, so that nothing else is warned about.
EASY = {"epsilon": 0.99, "method": "empirical"}


def test_calibrating_on_trained_samples_is_noticed(model):
    train, clean = pixels("train")[0], pixels("calibration")[0]
    calibrate(model, clean, **EASY)
    mixed = observe(model, np.concatenate([clean, train[:3]]))
    with pytest.warns(UserWarning, match="on 3 of the 400 calib") as caught:
        calibrate(model, mixed, **EASY)
    assert caught[0].filename == __file__
    # As integers they are the same samples: the model's input type counts.
    model.training_fingerprints.add((train * 16).astype("float32"))
    with pytest.raises(ValueError, match="400 of the 797") as error:
        calibrate(
            model, np.concatenate([clean, train[:400]]).astype("float64"),
            **EASY
        )  # fmt: skip
    assert "training_fingerprints = None" in str(error.value)


def test_refusal_leaves_the_policy_as_it_was(model):
    model.policy.threshold = 0.123
    with pytest.raises(ValueError, match="was trained on"):
        calibrate(model, pixels("train")[0], **EASY)
    assert model.policy.threshold == 0.123


def test_observations_and_batches_are_looked_at_too(model):
    train, clean = pixels("train")[0], pixels("calibration")[0]
    seen = observe(model, np.concatenate([clean, train]))
    with pytest.raises(ValueError, match="1000 of the 1397"):
        calibrate(model, seen, **EASY)
    calibrate(model, seen.take(slice(397)), **EASY)
    batches = (train[i : i + 100] for i in range(0, 1000, 100))
    with pytest.raises(ValueError, match="1000 of the 1000"):
        calibrate(model, batches, **EASY)


def test_without_a_record_nothing_is_said(model, monkeypatch):
    monkeypatch.setattr(model, "training_fingerprints", None)
    seen = observe(model, pixels("train")[0])
    assert seen.fingerprints is None
    calibrate(model, seen, **EASY)
    other = types.SimpleNamespace(
        policy=model.policy, relative_costs=model.relative_costs
    )
    calibrate(other, seen, **EASY)
