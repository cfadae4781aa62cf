"""What a report was made from and with, so that it can be made again."""

import hashlib
import platform

import numpy as np

from keras_earlyexit.profiling import machine


def of_data(x, y):
    """SHA-256 of samples and labels: names, shapes, types and values.

    Args:
        x: An array, or a list or dict of arrays; strings as objects.
        y: Labels, an array.

    Returns:
        64 hexadecimal digits.
    """
    found = hashlib.sha256()
    for name, array in sorted({**_named(x), "y": np.asarray(y)}.items()):
        _add(found, name, array)
    return found.hexdigest()


def of_weights(model):
    """SHA-256 of a Keras model's weights, in their order."""
    found = hashlib.sha256()
    for number, array in enumerate(model.get_weights()):
        _add(found, str(number), np.asarray(array))
    return found.hexdigest()


def facts(model, x, y, notes):
    """Pairs (name, value) for the reproducibility block, as text.

    Args:
        model: The `EarlyExitModel`.
        x: The samples of the report.
        y: Their labels.
        notes: Dict by name of what the caller knows: seed, command, date.
    """
    import keras

    import keras_earlyexit

    found = {
        "model": model.name,
        "weights, SHA-256": of_weights(model),
        "data, SHA-256": of_data(x, y),
        "keras_earlyexit": keras_earlyexit.__version__,
        "software": ", ".join(machine.versions()),
        "backend": keras.backend.backend(),
        "processor": f"{machine.processor()}, {machine.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}",
    }
    named = {**notes, **found}
    return [(str(name), str(value)) for name, value in named.items()]


def _named(x):
    if isinstance(x, dict):
        return {f"x {name}": np.asarray(array) for name, array in x.items()}
    if isinstance(x, (list, tuple)):
        return {f"x {k}": np.asarray(array) for k, array in enumerate(x)}
    return {"x": np.asarray(x)}


def _add(found, name, array):
    # An object array holds addresses; its strings are what counts.
    if array.dtype.kind == "O":
        array = np.char.encode(array.astype("U"), "utf-8")
    found.update(f"{name} {array.dtype.str} {array.shape} ".encode())
    found.update(np.ascontiguousarray(array).tobytes())
