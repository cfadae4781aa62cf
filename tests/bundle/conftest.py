"""Bundles without a model: folders whose stages are no more than bytes."""

import hashlib

import pytest

from keras_earlyexit.bundle.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    StageEntry,
    render,
)
from keras_earlyexit.bundle.specs import TensorSpec

CONTENTS = {
    "stage_0.tflite": b"first stage",
    "stage_1/saved_model.pb": b"second stage",
    "stage_1/variables/variables.index": b"",
}


def manifest_of(contents, **changes):
    """A manifest for files with some contents."""
    feature = TensorSpec("feature", (None, 4, 4, 2), "float32")
    prediction = TensorSpec("prediction", (None, 3), "float32")
    score = TensorSpec("score", (None,), "float32")
    image = TensorSpec("image", (None, 8, 8, 1), "uint8")
    values = {
        "format": "litert",
        "model_name": "small",
        "weights_sha256": "0" * 64,
        "exit_names": ("exit_0", "final"),
        "relative_costs": (0.25, 1.01),
        "thresholds": (float("inf"),),
        "policy": {"name": "learned", "config": {}},
        "head": {"units": 3},
        "class_names": ("a", "b", "c"),
        "segment_index": 0,
        "segment_count": 1,
        "input_structure": "tensor",
        "stages": (
            StageEntry(
                0, "stage_0.tflite", (image,), (feature, prediction, score)
            ),
            StageEntry(1, "stage_1", (feature,), (prediction,)),
        ),
        "files": tuple(
            FileEntry(name, len(data), hashlib.sha256(data).hexdigest())
            for name, data in contents.items()
        ),
        "versions": {"python": "3.11"},
        "probe": {"samples": 16, "tolerance": 1e-4},
    }
    return Manifest(**{**values, **changes})


@pytest.fixture
def manifest():
    return manifest_of(CONTENTS)


@pytest.fixture
def written(tmp_path, manifest):
    """A folder with a manifest and its files."""
    folder = tmp_path / "bundle"
    for name, data in CONTENTS.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    (folder / MANIFEST).write_bytes(render(manifest))
    return folder
