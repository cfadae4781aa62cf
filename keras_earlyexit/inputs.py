"""What users hand in: arrays, tensors, datasets and generators, as batches."""

import itertools

import keras
import numpy as np

from keras_earlyexit.checks import refuse_nan


def as_inputs(x, reference):
    """Fits arrays or tensors to the inputs of a model.

    Args:
        x: One array, or a list or dict of them for several inputs.
        reference: The model's `input`, a structure of `KerasTensor`.

    Returns:
        The structure of `reference` with numpy arrays (or tensors, left on
        their device) of the right type.

    Raises:
        ValueError: If the structure or a shape does not fit.
    """
    if not keras.tree.is_nested(reference):
        if isinstance(x, dict) and reference.name in x:
            x = x[reference.name]
        elif isinstance(x, (list, tuple)):
            if len(x) == 1:
                (x,) = x
            elif x and len(getattr(x[0], "shape", ())) == len(reference.shape):
                raise _wrong_structure(x, [reference.name])
        return _fit(x, reference)
    if isinstance(reference, dict):
        if not isinstance(x, dict) or not set(reference) <= set(x):
            raise _wrong_structure(x, sorted(reference))
        return {name: _fit(x[name], reference[name]) for name in reference}
    names = [tensor.name for tensor in reference]
    if isinstance(x, dict):
        if not set(names) <= set(x):
            raise _wrong_structure(x, names)
        x = [x[name] for name in names]
    if len(reference) == 1 and not isinstance(x, (list, tuple)):
        x = [x]
    if not isinstance(x, (list, tuple)) or len(x) != len(reference):
        raise _wrong_structure(x, names)
    return [
        _fit(array, tensor) for array, tensor in zip(x, reference, strict=True)
    ]


def _wrong_structure(x, names):
    got = f"keys {sorted(x)}" if isinstance(x, dict) else type(x).__name__
    if isinstance(x, (list, tuple)):
        got = f"{len(x)} arrays"
    return ValueError(
        f"Expected one array for each of the model's inputs {names}, as a "
        f"list in this order or a dict by name. Received: {got}."
    )


def _fit(array, tensor):
    if _is_tensor(array):
        shape = tuple(array.shape)
        if len(shape) == len(tensor.shape) and all(
            want in (None, have)
            for want, have in zip(tensor.shape[1:], shape[1:], strict=True)
        ):
            refuse_nan(array, tensor.name)
            return keras.ops.cast(array, tensor.dtype)
        array = keras.ops.convert_to_numpy(array)
    array = np.asarray(array)
    if tensor.dtype != "string":
        array = _cast(array, tensor)
    wanted = tensor.shape
    if array.ndim == len(wanted) - 1 and wanted[-1] == 1:
        array = array[..., None]
    fits = array.ndim == len(wanted) and all(
        want is None or want == have
        for want, have in zip(wanted[1:], array.shape[1:], strict=True)
    )
    if not fits:
        hint = ""
        if array.ndim == len(wanted) - 1:
            hint = " For a single sample pass `x[None]`."
        raise ValueError(
            f"Expected input '{tensor.name}' of shape {tuple(wanted)} (None "
            f"stands for any size, first the batch). Received: an array of "
            f"shape {array.shape} and dtype {array.dtype}.{hint}"
        )
    refuse_nan(array, tensor.name)
    return array


def _cast(array, tensor):
    if array.dtype == object or array.dtype.kind in "USM":
        raise ValueError(
            f"Expected input '{tensor.name}' as numbers that {tensor.dtype} "
            f"can hold. Received: an array of dtype {array.dtype}."
        )
    dtype = tensor.dtype
    if dtype == "bfloat16":
        return keras.ops.convert_to_numpy(keras.ops.cast(array, dtype))
    return array.astype(dtype, copy=False)


def as_zeros(reference, rows):
    """A batch of zeros for a model's `input`; open axes have length 1.

    Args:
        reference: The model's `input`, a structure of `KerasTensor`.
        rows: Number of samples.
    """

    def zeros(tensor):
        shape = (rows, *(size or 1 for size in tensor.shape[1:]))
        return np.zeros(shape, tensor.dtype.replace("string", "str"))

    return keras.tree.map_structure(zeros, reference)


def num_rows(batch):
    """Number of samples in a batch."""
    return keras.tree.flatten(batch)[0].shape[0]


def slices(batch, size):
    """Cuts a batch into parts of `size` rows; an empty batch is one part."""
    rows = num_rows(batch)
    if rows <= size:
        yield batch
        return
    for start in range(0, rows, size):
        yield keras.tree.map_structure(
            lambda array, s=start: array[s : s + size], batch
        )


def as_batches(x, reference, batch_size, steps=None):
    """Batches of any input, fitted to a model.

    Args:
        x: Arrays, tensors, a `tf.data.Dataset`, a `keras.utils.PyDataset`, or
            an iterable of batches; elements that are tuples are (x, y, ...).
        reference: The model's `input`.
        batch_size: Rows per batch of arrays.
        steps: Number of batches to take; `None`: all.

    Returns:
        `(batches, total)`: an iterator, and how many there are, or `None`.

    Raises:
        TypeError: If `x` is nothing that has samples.
    """
    if isinstance(x, keras.utils.PyDataset):
        total = x.num_batches
        batches = (x[i] for i in range(total))
        return itertools.islice(
            _features(batches, reference), steps
        ), steps or total
    if is_arrays(x):
        inputs = as_inputs(x, reference)
        total = max(-(-num_rows(inputs) // batch_size), 1)
        return itertools.islice(
            slices(inputs, batch_size), steps
        ), steps or total
    if not hasattr(x, "__iter__"):
        raise TypeError(
            "Expected arrays, tensors, a tf.data.Dataset, a PyDataset or an "
            f"iterable of batches. Received: {type(x).__name__}."
        )
    total = steps
    if total is None and hasattr(x, "cardinality"):
        total = int(x.cardinality())
        total = total if total >= 0 else None
    return itertools.islice(_features(x, reference), steps), total


def as_labelled_batches(x, y, sample_weight, reference, batch_size, steps=None):
    """Batches of inputs with their labels and weights.

    Args:
        x, y, sample_weight: As `keras.Model.evaluate` takes them: arrays, or a
            dataset or generator as `x` that yields (x, y) or (x, y, weight).
        reference: The model's `input`.
        batch_size: Rows per batch of arrays.
        steps: Number of batches to take; `None`: all.

    Yields:
        Tuples (inputs, labels, weights or `None`).
    """
    if is_arrays(x) and not isinstance(x, keras.utils.PyDataset):
        inputs = as_inputs(x, reference)
        data = {"x": inputs, "y": np.asarray(y)}
        if sample_weight is not None:
            data["weight"] = np.asarray(sample_weight)
        parts = (
            (d["x"], d["y"], d.get("weight")) for d in slices(data, batch_size)
        )
        yield from itertools.islice(parts, steps)
        return
    if isinstance(x, keras.utils.PyDataset):
        x = (x[i] for i in range(x.num_batches))
    for features, labels, *rest in itertools.islice(x, steps):
        weight = rest[0] if rest else None
        yield as_inputs(features, reference), labels, weight


def is_arrays(x):
    """Whether `x` holds its samples itself: arrays, or a structure of them."""
    if isinstance(x, (dict, list, tuple)):
        return True
    return _is_tensor(x) or hasattr(x, "__array__")


def _is_tensor(x):
    # Asked of an array, TensorFlow goes through the attributes of a protocol.
    return not isinstance(x, np.ndarray) and keras.ops.is_tensor(x)


def _features(batches, reference):
    one_input = not isinstance(reference, (list, dict))
    for element in batches:
        # A torch DataLoader yields lists where others yield tuples.
        pair = isinstance(element, list) and one_input and len(element) > 1
        x = element[0] if pair or isinstance(element, tuple) else element
        yield as_inputs(x, reference)
