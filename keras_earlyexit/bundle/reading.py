"""Loads a bundle."""

import os

from keras_earlyexit.bundle import folder
from keras_earlyexit.bundle.answering import Bundle
from keras_earlyexit.bundle.runtimes import FROM_BYTES, LOADERS
from keras_earlyexit.bundle.specs import BundleError
from keras_earlyexit.storage.urls import is_url


def load_bundle(path, *, manifest_sha256=None, num_threads=None, num_calls=1):
    """Loads a bundle that `ee.export` has written.

    The manifest is checked first, then the size and the hash of every file,
    and only then are files parsed. Bundles of the formats `litert` and `onnx`
    run without Keras and TensorFlow. Models are programs: the hashes show
    damage, not whether whoever wrote the bundle can be trusted.

    Args:
        path: The bundle's folder, or its URL, such as `s3://bucket/model`,
            from which it is fetched into a folder of this machine.
        manifest_sha256: What the SHA-256 of `manifest.json` must be, in hex,
            known from elsewhere; `None` takes any.
        num_threads: Threads that one call may use, for `litert` and `onnx`;
            `None` takes the runtime's default.
        num_calls: Threads that may be in a stage at the same time, for
            `litert`; others wait. Each takes an interpreter of its own, with
            its memory, once there are so many. Other formats see to that
            themselves.

    Returns:
        A `Bundle`.

    Raises:
        FileNotFoundError: If there is no bundle at `path`.
        BundleError: If the bundle is damaged, has been changed, or has a
            format version that this library does not know. It is a
            `ValueError`.
        ImportError: If what runs the stages is not installed, or what reads
            the URL.
        OSError: If the URL cannot be read.

    Example:

    ```python
    bundle = ee.load_bundle("model_bundle")
    bundle.thresholds = 0.9
    result = bundle.predict_exits(x)
    ```
    """
    path = os.fspath(path)
    if num_threads is not None:
        _check_count("num_threads", num_threads, ", or None")
    _check_count("num_calls", num_calls)
    if is_url(path):
        from keras_earlyexit.bundle.remote import fetch

        path, manifest_sha256 = fetch(path, manifest_sha256)
    manifest, found = folder.read_manifest(path, manifest_sha256)
    contents = folder.check_files(
        path, manifest, keep=manifest.format in FROM_BYTES
    )
    load = LOADERS[manifest.format]
    try:
        stages = load(path, manifest, contents, num_threads, num_calls)
    except (BundleError, ImportError):
        raise
    except Exception as error:
        # Each runtime has errors of its own for a file that it cannot read.
        raise BundleError(
            f"Expected stages in the format {manifest.format!r} that this "
            f"environment can run. Received: {path!r}, written with "
            f"{manifest.versions}, and the error {type(error).__name__}: "
            f"{error}"
        ) from error
    return Bundle(manifest, stages, found)


def _check_count(name, value, otherwise=""):
    if type(value) is not int or value < 1:
        raise ValueError(
            f"Expected `{name}` to be an integer of at least 1{otherwise}. "
            f"Received: {name}={value!r} (of type {type(value).__name__})."
        )
