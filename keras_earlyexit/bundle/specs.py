"""What goes into a stage and comes out: names, shapes and types of tensors."""

import dataclasses

import numpy as np

DTYPES = (
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "float32",
    "float64",
    "string",
)


class BundleError(ValueError):
    """A bundle is damaged, tampered with, or not of a known form."""


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """Name, shape and type of one tensor.

    Args:
        name: What the tensor is called where it is handed in by name.
        shape: Tuple, the batch first, with `None` for a size that is open.
        dtype: One of `DTYPES`.
    """

    name: str
    shape: tuple
    dtype: str

    def holds(self, shape):
        """Whether an array of some shape fits."""
        return len(shape) == len(self.shape) and all(
            wanted in (None, size)
            for wanted, size in zip(self.shape, shape, strict=True)
        )

    def fit(self, array):
        """An array in this form.

        Args:
            array: What a user handed in, anything that NumPy makes an array.

        Returns:
            An array of this type, contiguous in memory; the same one if it
            was that already. A last axis of 1 may be missing.

        Raises:
            ValueError: If the shape or the type does not fit, or if there is
                NaN in it.
        """
        array = np.asarray(array)
        if self.dtype == "string":
            array = array.astype(object)
        elif array.dtype.kind not in "biuf":
            raise ValueError(
                f"Expected input '{self.name}' as numbers that {self.dtype} "
                f"can hold. Received: an array of dtype {array.dtype}."
            )
        else:
            array = np.ascontiguousarray(array, self.dtype)
        if array.ndim == len(self.shape) - 1 and self.shape[-1] == 1:
            array = array[..., None]
        if not self.holds(array.shape):
            hint = ""
            if array.ndim == len(self.shape) - 1:
                hint = " For a single sample pass `x[None]`."
            raise ValueError(
                f"Expected input '{self.name}' of shape {self.shape} (None "
                "stands for any size, first the batch). Received: an array "
                f"of shape {array.shape} and dtype {array.dtype}.{hint}"
            )
        refuse_nan(array, f"input '{self.name}'")
        return array


def fit_inputs(x, specs, structure):
    """Fits what a user handed in to the inputs of a bundle.

    Args:
        x: An array, or a list or dict of them for several inputs.
        specs: The `TensorSpec` of every input.
        structure: `"tensor"`, `"list"` or `"dict"`, as the model has it.

    Returns:
        A tuple of arrays with equally many rows.

    Raises:
        ValueError: If the structure, a shape or a type does not fit.
    """
    names = [spec.name for spec in specs]
    if isinstance(x, dict):
        if not set(names) <= set(x):
            raise _wrong_structure(x, names)
        x = [x[name] for name in names]
    elif structure == "dict" and len(specs) > 1:
        raise _wrong_structure(x, names)
    elif len(specs) == 1 and not _holds_arrays(x, len(specs[0].shape)):
        x = [x]
    elif not isinstance(x, (list, tuple)):
        raise _wrong_structure(x, names)
    if len(x) != len(specs):
        raise _wrong_structure(x, names)
    arrays = tuple(
        spec.fit(array) for spec, array in zip(specs, x, strict=True)
    )
    rows = [len(array) for array in arrays]
    if len(set(rows)) > 1:
        raise ValueError(
            "Expected equally many samples in every input. Received: "
            f"{dict(zip(names, rows, strict=True))}."
        )
    return arrays


def _holds_arrays(x, ndim):
    """Whether a list holds arrays of a rank, and is not an array itself."""
    return isinstance(x, (list, tuple)) and len(x) > 0 and np.ndim(x[0]) == ndim


def refuse_nan(array, what):
    """Raises a `ValueError` that names the rows with NaN, if there are any."""
    if array.dtype.kind != "f" or not np.isnan(array).any():
        return
    found = np.isnan(array.reshape(len(array), -1)).any(axis=1)
    raise ValueError(
        f"Expected finite numbers. Received: {what} with NaN in "
        f"{found.sum()} of {len(array)} samples, the first of them at rows "
        f"{np.flatnonzero(found)[:5].tolist()}."
    )


def _wrong_structure(x, names):
    if isinstance(x, dict):
        got = f"keys {sorted(map(str, x))}"
    elif isinstance(x, (list, tuple)):
        got = f"{len(x)} arrays"
    else:
        got = type(x).__name__
    return ValueError(
        f"Expected one array for each of the inputs {names}, as a list in "
        f"this order or, where the model takes one, a dict by name. "
        f"Received: {got}."
    )
