"""LiteRT files: quantised, in plain types, and what cannot be converted."""

import concurrent.futures
import hashlib
import json
import threading

import keras
import numpy as np
import pytest
import zoo
from bundling import ON_TENSORFLOW

import keras_earlyexit as ee
from keras_earlyexit.bundle import litert
from keras_earlyexit.bundle.specs import BundleError

pytestmark = pytest.mark.skipif(
    not ON_TENSORFLOW, reason="LiteRT files are written on TensorFlow"
)


@pytest.fixture(scope="module")
def digits():
    """A small network that has learnt to tell digits, and test samples."""
    keras.utils.set_random_seed(0)
    data = {
        split: ee.datasets.load("digits", split)
        for split in ("train", "calibration", "test")
    }
    data = {
        split: (ee.datasets.normalize("digits", x), y)
        for split, (x, y) in data.items()
    }
    plain = ee.backbones.resnet_cifar(8, (8, 8, 1), 10)
    model = ee.add_exits(plain, 1, block="plain")
    model.compile(keras.optimizers.Adam(3e-3), "sdn")
    model.fit(*data["train"], batch_size=64, epochs=6, verbose=0)
    model.policy.threshold = 0.8
    return model, data


@pytest.mark.parametrize(
    "quantize, agreement, smaller",
    [("int8", 0.97, 0.6), ("float16", 1.0, 0.8), ("dynamic", 0.97, 0.6)],
)
def test_quantised(digits, quantize, agreement, smaller, tmp_path):
    model, data = digits
    x, y = data["calibration"]
    plain = ee.export(model, tmp_path / "plain", representative=(x, y))
    report = ee.export(
        model, tmp_path / "small", quantize=quantize, representative=(x, y)
    )
    assert plain.agreement == 1.0 and plain.model_accuracy > 0.8
    assert report.agreement >= agreement
    assert report.accuracy >= plain.accuracy - 0.03
    assert report.num_bytes < smaller * plain.num_bytes
    assert 0 < report.largest_difference < 0.2
    bundle = ee.load_bundle(tmp_path / "small")
    assert bundle.manifest.quantize == quantize
    x, y = data["test"]
    right = bundle.predict_exits(x).predictions.argmax(axis=-1) == y
    assert right.mean() > 0.8


def test_int8_needs_samples(small, tmp_path):
    with pytest.raises(ValueError, match="representative=x_train"):
        ee.export(small, tmp_path / "bundle", quantize="int8")
    with pytest.raises(ValueError, match="int8, float16, dynamic"):
        ee.export(small, tmp_path / "bundle", quantize="int4")


def test_types_and_steps_are_put_back(tmp_path):
    """Exporting lets layers compute otherwise, for a while only."""
    _, model = zoo.plain_and_early("mixed_precision")
    ee.export(model, tmp_path / "half")
    stem = model.net.get_layer("stem")
    assert stem.dtype_policy.name == "mixed_bfloat16"
    _, model = zoo.plain_and_early("lstm_stack")
    ee.export(model, tmp_path / "recurrent")
    assert not model.net.get_layer("lstm_0").unroll


@keras.saving.register_keras_serializable(package=zoo.PACKAGE)
class InverseErf(keras.layers.Layer):
    def call(self, x):
        return keras.ops.erfinv(0.5 * keras.ops.tanh(x))


def model_with(layer):
    row = keras.Input((6,), name="row")
    x = keras.layers.Dense(8, name="dense_0")(row)
    x = keras.layers.Dense(8, name="dense_1")(layer(x))
    outputs = keras.layers.Dense(3, activation="softmax", name="head")(x)
    return ee.add_exits(keras.Model(row, outputs), ["dense_0", "dense_1"])


@pytest.mark.filterwarnings("ignore:The cost of")
def test_a_layer_that_cannot_be_converted_is_named(tmp_path):
    model = model_with(InverseErf(name="strange"))
    with pytest.raises(ValueError, match="'strange' .of type InverseErf"):
        ee.export(model, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
    ee.export(model, tmp_path / "bundle", format="keras")


def test_a_wrong_file_with_a_right_hash(small, tmp_path):
    """Whoever writes the manifest too still has to keep to it."""
    path = tmp_path / "bundle"
    ee.export(small, path)
    first, second, last = (
        (path / f"stage_{i}.tflite").read_bytes() for i in range(3)
    )
    for name, data, message in (
        ("stage_0.tflite", b"no LiteRT file", "that LiteRT refuses"),
        ("stage_0.tflite", second, r"float32 of shape \(None, 6\)"),
        ("stage_1.tflite", last, "have the tensors"),
    ):
        put(path, "stage_0.tflite", first)
        put(path, name, data)
        with pytest.raises(BundleError, match=message):
            ee.load_bundle(path)


def put(path, name, data):
    """Replaces a file of a bundle, and its entry in the manifest."""
    (path / name).write_bytes(data)
    content = json.loads((path / "manifest.json").read_text())
    for file in content["files"]:
        if file["path"] == name:
            file["size_bytes"] = len(data)
            file["sha256"] = hashlib.sha256(data).hexdigest()
    (path / "manifest.json").write_text(json.dumps(content))


def test_number_of_threads(small, rows, bundle_in):
    bundle = ee.load_bundle(bundle_in("litert"), num_threads=2)
    np.testing.assert_allclose(
        bundle.predict_exits(rows).predictions,
        small.predict(rows, verbose=0),
        atol=1e-5,
    )


@pytest.mark.parametrize("num_calls", [1, 2])
def test_calls_at_the_same_time(small, rows, bundle_in, monkeypatch, num_calls):
    # Three threads call; as many as may be in a stage meet there, and the
    # last goes on when nobody else comes.
    meeting, seen = threading.Barrier(num_calls + 1), []
    in_stage = threading.Semaphore(0)
    run = litert._Interpreter.run

    def held(interpreter, arrays):
        seen.append(interpreter)
        in_stage.release()
        if len(seen) <= num_calls:
            meeting.wait(timeout=60)
        return run(interpreter, arrays)

    bundle = ee.load_bundle(bundle_in("litert"), num_calls=num_calls)
    wanted = small.predict(rows, verbose=0)
    monkeypatch.setattr(litert._Interpreter, "run", held)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(bundle.predict_exits, rows) for _ in range(3)]
        for _ in range(num_calls):
            assert in_stage.acquire(timeout=60)
        assert not in_stage.acquire(timeout=0.3)
        meeting.wait(timeout=60)
        for future in asked:
            np.testing.assert_allclose(
                future.result(timeout=60).predictions, wanted, atol=1e-5
            )
    first = seen[:num_calls]
    assert len(set(map(id, first))) == num_calls
