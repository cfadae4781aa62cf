"""Loads what is served, and sees when it has changed."""

import os
import pathlib
import tempfile

import numpy as np

from keras_earlyexit.bundle.reading import load_bundle
from keras_earlyexit.storage.urls import is_url


def load(source, num_threads=None, num_calls=1):
    """Loads a bundle, or a model that Keras has saved.

    Args:
        source: The folder or the URL of a bundle, or a `.keras` file of an
            `EarlyExitModel`, for which Keras is imported.
        num_threads: Threads that one call may use, for LiteRT and ONNX.
        num_calls: Calls of a stage at the same time, for LiteRT.

    Returns:
        A `Bundle`.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If it is damaged or something else.
        ImportError: If what runs it is not installed.
    """
    if not is_url(source):
        source = pathlib.Path(source)
        if source.suffix == ".keras":
            return _load_keras(source)
    return load_bundle(source, num_threads=num_threads, num_calls=num_calls)


def _load_keras(source):
    if not source.is_file():
        raise FileNotFoundError(
            f"Expected a .keras file. Received: {str(source)!r}, which is "
            "not there. Correct the path."
        )
    import keras

    import keras_earlyexit as ee

    model = keras.models.load_model(source, compile=False, safe_mode=True)
    if not isinstance(model, ee.EarlyExitModel):
        raise ValueError(
            "Expected the .keras file of a model with exits. Received: "
            f"{str(source)!r}, a {type(model).__name__}. Make one with "
            "`ee.add_exits`, and save that."
        )
    # As a bundle it gets the hashes by which edges know it.
    with tempfile.TemporaryDirectory(prefix="cloud_worker_") as folder:
        path = os.path.join(folder, "bundle")
        ee.export(model, path, format="keras")
        return load_bundle(path)


def warm_up(generation):
    """Runs all stages once, so that no request has to wait for that.

    Args:
        generation: A `Generation`.

    Raises:
        Exception: Whatever a stage raises that does not run.
    """
    first = generation.entrances[min(generation.entrances)]
    specs = first.bundle.manifest.stages[0].inputs
    if any(None in spec.shape[1:] for spec in specs):
        # Which sizes will come is not known.
        return
    for rows in sorted({1, first.limits.max_rows}):
        arrays = {
            spec.name: np.zeros((rows, *spec.shape[1:]), spec.dtype)
            for spec in specs
        }
        first.bundle.all_exits(arrays)
