"""Bundles are loaded, and seen to change."""

import os
import pathlib
import shutil

import numpy as np
import pytest
from calling.serving import make_bundles

from cloud_worker.batching import Queue
from cloud_worker.generations import build
from cloud_worker.loading import load, warm_up
from keras_earlyexit.bundle.specs import BundleError
from keras_earlyexit.bundle.watching import Watch


def generation_of(bundle):
    return build(
        "here",
        bundle,
        max_message_bytes=None,
        max_batch=16,
        queue=lambda: Queue(100, 16),
        raw_input=False,
    )


def test_a_bundle(folders, x):
    bundle = load(folders / "whole", num_threads=1)
    assert len(bundle.predict_exits(x)) == len(x)


def test_a_keras_file(folders, x):
    bundle = load(folders / "whole.keras")
    expected = load(folders / "whole").predict_exits(x)
    found = bundle.predict_exits(x)
    np.testing.assert_array_equal(found.exit_index, expected.exit_index)
    np.testing.assert_allclose(found.predictions, expected.predictions, 1e-4)
    mine, other = bundle.manifest, load(folders / "whole").manifest
    assert mine.weights_sha256 == other.weights_sha256


def test_what_cannot_be_loaded(folders, tmp_path):
    import keras

    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="Correct the path"):
        load(tmp_path / "nothing.keras")
    row = keras.Input((2,))
    plain = keras.Model(row, keras.layers.Dense(2)(row))
    plain.save(tmp_path / "plain.keras")
    with pytest.raises(ValueError, match="ee.add_exits"):
        load(tmp_path / "plain.keras")
    shutil.copytree(folders / "whole", tmp_path / "damaged")
    stage = next((tmp_path / "damaged").glob("*.tflite"))
    stage.write_bytes(stage.read_bytes()[:-1])
    with pytest.raises(BundleError):
        load(tmp_path / "damaged")


def test_warm_up_runs_every_stage_with_few_and_many_rows():
    bundle, rows = make_bundles()[1], []

    def noted(stage):
        def run(arrays):
            rows.append(len(arrays[0]))
            return stage(arrays)

        return run

    bundle = type(bundle)(
        bundle.manifest, [noted(x) for x in bundle.stages], "0" * 64
    )
    warm_up(generation_of(bundle))
    assert rows == [1, 1, 16, 16]


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    (folder / "deep").mkdir(parents=True)
    (folder / "manifest.json").write_text("one")
    (folder / "deep" / "file").write_text("one")
    return folder


def touch(path, text):
    path.write_text(text)
    # Clocks of file systems may be coarse.
    changed = os.stat(path).st_mtime_ns + 10**9
    os.utime(path, ns=(changed, changed))


def test_a_change_is_told_once_and_when_it_is_over(source):
    watch = Watch([source])
    assert watch.changed() == []
    touch(source / "deep" / "file", "two")
    assert watch.changed() == []
    touch(source / "deep" / "file", "three")
    assert watch.changed() == []
    assert watch.changed() == [source]
    assert watch.changed() == []
    touch(source / "deep" / "file", "four")
    assert watch.changed(at_once=True) == [source]
    assert watch.changed() == []


def test_a_folder_that_is_exchanged(source, tmp_path):
    watch = Watch([source])
    shutil.copytree(source, tmp_path / "new")
    shutil.move(source, tmp_path / "old")
    assert watch.changed() == [] and watch.changed() == []
    shutil.move(tmp_path / "new", source)
    assert watch.changed() == []
    assert watch.changed() == [source]


def test_a_file(tmp_path):
    file = pathlib.Path(tmp_path / "model.keras")
    file.write_text("one")
    watch = Watch([file])
    touch(file, "two")
    assert watch.changed(at_once=True) == [file]
