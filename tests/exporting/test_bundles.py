"""`ee.export`: what is written answers as the model does."""

import os
import threading

import keras
import numpy as np
import pytest
from bundling import FORMATS, ON_TENSORFLOW, make_model, set_thresholds

import keras_earlyexit as ee
from keras_earlyexit.bundle.specs import BundleError


@pytest.mark.backends_long
@pytest.mark.parametrize("format", FORMATS)
def test_a_bundle_answers_as_the_model(format, small, rows, bundle_in):
    bundle = ee.load_bundle(bundle_in(format))
    expected = small.predict_exits(rows)
    assert set(expected.exit_index) == {0, 1, 2}
    for batch_size in (None, 1, 7):
        found = bundle.predict_exits(rows, batch_size)
        np.testing.assert_array_equal(found.exit_index, expected.exit_index)
        np.testing.assert_array_equal(
            found.relative_cost, expected.relative_cost
        )
        np.testing.assert_allclose(
            found.predictions, expected.predictions, atol=1e-5
        )
        np.testing.assert_allclose(found.score, expected.score, atol=1e-5)


def test_a_bundle_at_a_url(small, rows, tmp_path, monkeypatch):
    pytest.importorskip("fsspec")
    monkeypatch.setenv("KERAS_EARLYEXIT_CACHE", str(tmp_path / "cache"))
    url = f"file://{tmp_path}/store/small"
    options = {"format": FORMATS[0], "cut": "exit_0"}
    report = ee.export(small, url, **options)
    assert report.path == url
    assert report.bundles == (f"{url}/segment_0", f"{url}/segment_1")
    edge, later = map(ee.load_bundle, report.bundles)
    routed = edge.route(rows)
    assert len(routed.staying) and later.manifest.segment_index == 1
    found = later.predict_exits(routed.feature)
    expected = small.predict_exits(rows)
    np.testing.assert_array_equal(
        found.exit_index, expected.exit_index[routed.staying]
    )
    with pytest.raises(FileExistsError, match="overwrite=True"):
        ee.export(small, url, **options)
    known = edge.manifest_sha256
    assert (
        ee.load_bundle(report.bundles[0], manifest_sha256=known).manifest_sha256
        == known
    )


@pytest.mark.parametrize("format", FORMATS)
def test_what_a_bundle_says_of_itself(format, small, bundle_in):
    bundle = ee.load_bundle(bundle_in(format))
    manifest = bundle.manifest
    assert bundle.exit_names == small.exit_names
    np.testing.assert_array_equal(bundle.relative_costs, small.relative_costs)
    np.testing.assert_array_equal(bundle.thresholds, small.policy.thresholds(2))
    assert manifest.policy == {
        "name": "max_probability",
        "config": {"reduce": "mean"},
    }
    assert manifest.head == {**small.head.get_config(), "positions": []}
    assert manifest.input_structure == "tensor"
    assert manifest.stages[0].inputs[0].name == "row"
    assert manifest.versions["keras"] == keras.version()
    assert bundle.is_last and len(bundle.manifest_sha256) == 64


@pytest.mark.parametrize("format", FORMATS)
def test_several_threads_use_one_bundle(format, small, rows, bundle_in):
    bundle = ee.load_bundle(bundle_in(format))
    expected = small.predict_exits(rows)
    wrong = []

    def answer(size):
        for _ in range(5):
            found = bundle.predict_exits(rows, batch_size=size)
            if not np.allclose(
                found.predictions, expected.predictions, atol=1e-5
            ):
                wrong.append(size)

    sizes = (1, 2, 3, 8, 40)
    threads = [threading.Thread(target=answer, args=(n,)) for n in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.backends
@pytest.mark.parametrize("format", FORMATS[:2])
def test_segments(format, small, rows, tmp_path):
    report = ee.export(
        small,
        tmp_path / "cut",
        format=format,
        cut=["exit_0", "exit_1"],
        representative=rows,
    )
    assert [os.path.basename(path) for path in report.bundles] == [
        *("segment_0", "segment_1", "segment_2"),
    ]
    assert sorted(os.listdir(tmp_path / "cut")) == sorted(
        os.path.basename(path) for path in report.bundles
    )
    assert len(report.stage_bytes) == 3
    expected = small.predict_exits(rows)
    bundles = [ee.load_bundle(path) for path in report.bundles]
    hashes = {bundle.manifest.weights_sha256 for bundle in bundles}
    assert len(hashes) == 1
    predictions = np.zeros_like(expected.predictions)
    exit_index = np.zeros_like(expected.exit_index)
    waiting, crossing = np.arange(len(rows)), rows
    for bundle in bundles:
        found = bundle.route(crossing)
        predictions[waiting] = found.predictions
        exit_index[waiting] = found.exit_index
        waiting, crossing = waiting[found.staying], found.feature
    assert crossing is None
    np.testing.assert_array_equal(exit_index, expected.exit_index)
    np.testing.assert_allclose(predictions, expected.predictions, atol=1e-5)


@pytest.mark.parametrize(
    "objective, policy",
    [("zero_time_waste", "max_probability"), ("jei", "joint_gate")],
)
def test_what_is_carried_crosses_a_cut(objective, policy, rows, tmp_path):
    model = make_model(policy=None)
    model.compile("sgd", objective)
    model.policy = ee.policies.get(policy, threshold=0.4)
    report = ee.export(
        model,
        tmp_path / "cut",
        format=FORMATS[-1] if ON_TENSORFLOW else "keras",
        cut="exit_0",
        representative=rows,
    )
    edge, cloud = (ee.load_bundle(path) for path in report.bundles)
    here = edge.route(rows, (np.inf, 0.4))
    there = cloud.predict_exits({"feature": here.feature, "carry": here.carry})
    model.policy.threshold = (np.inf, 0.4)
    expected = model.predict_exits(rows)
    np.testing.assert_allclose(
        there.predictions, expected.predictions, atol=1e-4
    )
    with pytest.raises(ValueError, match="'feature', 'carry'"):
        cloud.predict_exits(here.feature)


def test_the_report(small, rows, tmp_path):
    labels = small.predict(rows, verbose=0).argmax(axis=-1)
    labels[:10] = (labels[:10] + 1) % 4
    path = tmp_path / "bundle"
    report = ee.export(
        small,
        path,
        format="keras",
        representative=(rows, labels),
        class_names=["a", "b", "c", "d"],
    )
    assert report.accuracy == report.model_accuracy == pytest.approx(0.75)
    assert (report.agreement, report.samples) == (1.0, 40)
    assert report.largest_difference < 1e-5
    files = [file for file in path.rglob("*") if file.is_file()]
    assert report.num_bytes == sum(
        file.stat().st_size for file in files if file.suffix != ".json"
    )
    assert sum(report.stage_bytes) == report.num_bytes
    assert report.float32_weight_bytes == 4 * small.count_params()
    assert "routed accuracy: 0.7500 (the model: 0.7500)" in str(report)
    bundle = ee.load_bundle(path)
    assert bundle.manifest.class_names == ("a", "b", "c", "d")
    assert bundle.manifest.probe == {"samples": 40, "tolerance": 1e-4}


def test_current_weights_are_written(rows, tmp_path):
    model = make_model()
    ee.export(model, tmp_path / "bundle", format="keras")
    before = ee.load_bundle(tmp_path / "bundle").manifest.weights_sha256
    model.net.get_layer("dense_0").kernel.assign(np.ones((6, 8)))
    set_thresholds(model, rows)
    ee.export(model, tmp_path / "bundle", format="keras", overwrite=True)
    bundle = ee.load_bundle(tmp_path / "bundle")
    assert bundle.manifest.weights_sha256 != before
    np.testing.assert_allclose(
        bundle.predict_exits(rows).predictions,
        model.predict(rows, verbose=0),
        atol=1e-5,
    )


def test_what_answers_otherwise_is_not_written(small, tmp_path, monkeypatch):
    from keras_earlyexit.exporting import probing

    right = probing.exported

    def wrong(bundles, inputs):
        answers = right(bundles, inputs)
        answers["exit_1"] = answers["exit_1"] + 2e-4
        return answers

    monkeypatch.setattr(probing, "exported", wrong)
    with pytest.raises(RuntimeError, match="0.0002 at 'exit_1'"):
        ee.export(small, tmp_path / "bundle", format="keras")
    assert os.listdir(tmp_path) == []


def test_nan_is_not_written(tmp_path):
    model = make_model()
    model.net.get_layer("head").bias.assign(np.full(4, np.nan))
    with pytest.raises(RuntimeError, match="nan at 'final'"):
        ee.export(model, tmp_path / "bundle", format="keras")
    assert os.listdir(tmp_path) == []


def test_what_is_there_stays(small, tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine").write_text("")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError):
            ee.export(
                small,
                tmp_path / "bundle",
                format="keras",
                overwrite=overwrite,
            )
    assert os.listdir(tmp_path / "bundle") == ["mine"]


def test_a_file_that_runs_code_is_not_loaded(small, bundle_in, tmp_path):
    """A lambda in a `.keras` file, with hashes that fit."""
    import dataclasses
    import hashlib

    from keras_earlyexit.bundle import folder, manifest

    row = keras.Input((6,), name="row")
    y = keras.layers.Lambda(lambda x: x[:, :4])(row)
    path = tmp_path / "bundle"
    path.mkdir()
    outputs = {"feature": row + 1.0, "prediction": y, "score": y[:, 0]}
    keras.Model([row], outputs).save(path / "stage_0.keras")
    good, _ = folder.read_manifest(bundle_in("keras"))
    entry = manifest.FileEntry(
        "stage_0.keras",
        os.path.getsize(path / "stage_0.keras"),
        hashlib.sha256((path / "stage_0.keras").read_bytes()).hexdigest(),
    )
    bad = dataclasses.replace(
        good, stages=good.stages[:1], files=(entry,), routed=None
    )
    (path / "manifest.json").write_bytes(manifest.render(bad))
    with pytest.raises(BundleError, match="[Ll]ambda"):
        ee.load_bundle(path)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"format": "pickle"}, ValueError, "one of litert, saved_model"),
        ({"format": None}, ValueError, "format=None"),
        ({"quantize": "int8"}, ValueError, "for format='litert' one of"),
        ({"cut": "final"}, ValueError, "Behind 'final'"),
        ({"cut": "exit_9"}, ValueError, "Did you mean"),
        ({"cut": ()}, TypeError, "the name of an early exit"),
        ({"class_names": ["a"]}, ValueError, "a list of 4 strings"),
        ({"class_names": "abcd"}, ValueError, "a list of 4 strings"),
        ({"class_names": [1, 2, 3, 4]}, ValueError, "a list of 4 strings"),
        ({"representative": np.ones((5, 7))}, ValueError, r"\(5, 7\)"),
        ({"representative": np.ones((0, 6))}, ValueError, "at least one"),
        ({"representative": np.full((2, 6), np.nan)}, ValueError, "NaN"),
        (
            {"representative": (np.ones((2, 6)), [0, 4])},
            ValueError,
            "labels from 0 to 3",
        ),
        (
            {"representative": (np.ones((2, 6)), [0])},
            ValueError,
            "2 samples and 1 labels",
        ),
    ],
)
def test_wrong_arguments(options, error, message, small, tmp_path):
    options = {"format": "keras", **options}
    with pytest.raises(error, match=message):
        ee.export(small, tmp_path / "bundle", **options)
    assert os.listdir(tmp_path) == []


def test_a_model_without_exits(small, tmp_path):
    with pytest.raises(TypeError, match="Expected an EarlyExitModel"):
        ee.export(ee.strip_exits(small), tmp_path / "bundle", format="keras")


@pytest.mark.backends
@pytest.mark.skipif(ON_TENSORFLOW, reason="TensorFlow writes every format")
@pytest.mark.parametrize("format", ["litert", "saved_model", "onnx"])
def test_other_backends_say_what_to_do(format, small, tmp_path):
    with pytest.raises(ValueError, match="KERAS_BACKEND=tensorflow"):
        ee.export(small, tmp_path / "bundle", format=format)
