"""The whole state of training as one file that is written whole or not at all.

Keras' own files leave out the random state of layers, and are written in
place. Here all variables of a model and its optimizer are kept, the random
state among them, so that training goes on bit by bit as if it had never
stopped.

A file consists of a line that says what it is, the length of a head, the head
(JSON: what is told with the arrays; their types and shapes), the bytes of the
arrays, and a SHA-256 over all that. Nothing in it is ever run.
"""

import hashlib
import json
import math
import os
import secrets
import struct
import tempfile

import numpy as np

_MAGIC = b"keras_earlyexit snapshot 1\n"
_LENGTH = struct.Struct("<Q")
_DIGEST_BYTES = hashlib.sha256().digest_size
_PARTIAL = ".partial"


class DamagedSnapshot(ValueError):
    """A file that is no snapshot, or not as it was written."""


def write(path, arrays, facts):
    """Writes a snapshot; the one that was there stays until it is complete.

    Args:
        path: The file.
        arrays: List of NumPy arrays of numbers or booleans.
        facts: A dict that JSON can hold.

    Raises:
        OSError: If it cannot be written. What was there is still there.
    """
    path = os.path.abspath(path)
    arrays = [np.asarray(array) for array in arrays]
    head = {
        "facts": facts,
        "arrays": [[array.dtype.name, list(array.shape)] for array in arrays],
    }
    text = json.dumps(head, sort_keys=True, allow_nan=False).encode()
    folder, name = os.path.split(path)
    temporary = os.path.join(
        folder, f".{name}.{secrets.token_hex(8)}{_PARTIAL}"
    )
    try:
        with open(temporary, "xb") as file:
            digest = hashlib.sha256()
            for part in (_MAGIC, _LENGTH.pack(len(text)), text):
                file.write(part)
                digest.update(part)
            for array in arrays:
                part = np.ascontiguousarray(array).tobytes()
                file.write(part)
                digest.update(part)
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        _remove(temporary)
        raise
    _flush_folder(folder)


def read(path):
    """Reads a snapshot.

    Args:
        path: The file.

    Returns:
        `(arrays, facts)` as they were written.

    Raises:
        FileNotFoundError: If there is none.
        DamagedSnapshot: If it is not as it was written.
    """
    with open(path, "rb") as file:
        data = file.read()
    content, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if not content.startswith(_MAGIC):
        raise _damaged(path, "a file that does not start as one")
    if hashlib.sha256(content).digest() != digest:
        raise _damaged(path, "one with a wrong checksum")
    start = len(_MAGIC) + _LENGTH.size
    (length,) = _LENGTH.unpack_from(content, len(_MAGIC))
    head = json.loads(content[start : start + length])
    arrays, offset = [], start + length
    for dtype, shape in head["arrays"]:
        dtype = _dtype(dtype)
        count = math.prod(shape)
        found = np.frombuffer(content, dtype, count, offset).reshape(shape)
        arrays.append(found)
        offset += count * dtype.itemsize
    return arrays, head["facts"]


def save_model(model, path):
    """Saves a model as a `.keras` file, whole or not at all.

    Args:
        model: A Keras model.
        path: The file; the one that was there stays until it is complete.

    Raises:
        OSError: If it cannot be written.
    """
    folder, name = os.path.split(os.path.abspath(path))
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.") as inner:
        temporary = os.path.join(inner, name)
        model.save(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    _flush_folder(folder)


def remove_left_behind(path):
    """Removes what a write that was killed has left beside a file.

    Only for who is alone in writing it.

    Args:
        path: The file.
    """
    folder, name = os.path.split(os.path.abspath(path))
    for entry in os.listdir(folder):
        if entry.startswith(f".{name}.") and entry.endswith(_PARTIAL):
            _remove(os.path.join(folder, entry))


def variables_of(model):
    """All that changes in a model when it is trained.

    Args:
        model: A compiled Keras model.

    Returns:
        A list of Keras variables: weights, the random state of layers, and
        the optimizer's.
    """
    return [*model.variables, *model.optimizer.variables]


def float_weights(model):
    """The weights that have a mean with those of another model like it.

    Args:
        model: A Keras model.

    Returns:
        A list of Keras variables: neither counters nor random state.
    """
    import keras

    return [w for w in model.weights if keras.backend.is_float_dtype(w.dtype)]


def weights_sha256(weights):
    """SHA-256 over shape, type and value of each weight, in their order.

    Args:
        weights: A list of Keras variables.

    Returns:
        Text, in hexadecimal.
    """
    import keras

    digest = hashlib.sha256()
    for weight in weights:
        value = np.ascontiguousarray(keras.ops.convert_to_numpy(weight.value))
        digest.update(f"{value.shape}{value.dtype}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def state_of(model):
    """The values of `variables_of` as a list of NumPy arrays, copied."""
    import keras

    values = [variable.value for variable in variables_of(model)]
    if keras.backend.backend() == "tensorflow":
        return _read(values)
    return [np.array(keras.ops.convert_to_numpy(value)) for value in values]


def restore(model, arrays):
    """Puts values back that `state_of` gave.

    Args:
        model: A compiled Keras model like the one that they are from.
        arrays: List of arrays.

    Raises:
        ValueError: If they are of another model or optimizer. Nothing is
            changed then.
    """
    variables = variables_of(model)
    expected = [(tuple(v.shape), str(v.dtype)) for v in variables]
    received = [(array.shape, array.dtype.name) for array in arrays]
    if expected != received:
        raise ValueError(
            f"Expected the state of '{model.name}' and its optimizer, "
            f"{len(expected)} arrays. Received: {len(received)} arrays, of "
            "which some have other shapes or types. Start with the same "
            "model, cut and optimizer, or with an empty folder."
        )
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def _read(variables):
    """Values of TensorFlow's variables, four times as fast as `numpy()`."""
    import tensorflow as tf

    read = tf.raw_ops.ReadVariableOp
    return [read(resource=v.handle, dtype=v.dtype).numpy() for v in variables]


def _dtype(name):
    if name == "bfloat16" or name.startswith("float8"):
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype(name)


def _damaged(path, received):
    return DamagedSnapshot(
        f"Expected a snapshot of training at {os.fspath(path)!r}. Received: "
        f"{received}. Look at the disk; restore the file from a copy, or "
        "remove it to start anew."
    )


def _remove(path):
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _flush_folder(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
