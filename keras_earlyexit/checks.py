"""Data that cannot be right is refused before it costs an epoch."""

import keras
import numpy as np


def check_data(head, x, y):
    """Refuses labels that do not fit the head, and NaN among the inputs.

    Arrays are looked at as a whole; datasets and generators are not consumed.

    Args:
        head: The model's `tasks.Head`.
        x: What `fit` or `evaluate` was given as `x`.
        y: The same for `y`.

    Raises:
        ValueError: If something cannot be right.
    """
    arrays = [leaf for leaf in keras.tree.flatten(x) if _is_array(leaf)]
    if not arrays:
        return
    if y is None:
        raise ValueError(
            "Expected labels: every exit learns from them. Received: arrays "
            "x with y=None. Pass `fit(x, y)`, or a dataset that yields (x, y)."
        )
    if _is_array(y):
        if len(y) != len(arrays[0]):
            raise ValueError(
                "Expected one label for each sample. Received: "
                f"{len(arrays[0])} samples and {len(y)} labels."
            )
        head.check_labels(keras.ops.convert_to_numpy(y))
    for array in arrays:
        _refuse_nan(array)


def _is_array(value):
    return (
        isinstance(value, np.ndarray) or keras.ops.is_tensor(value)
    ) and len(value.shape) > 0


def _refuse_nan(array, rows_at_once=4096):
    if not isinstance(array, np.ndarray):
        array = keras.ops.convert_to_numpy(array)
    if array.dtype.kind != "f":
        return
    for start in range(0, len(array), rows_at_once):
        part = array[start : start + rows_at_once]
        bad = np.isnan(part.reshape(len(part), -1)).any(axis=1)
        if bad.any():
            rows = (start + np.flatnonzero(bad))[:5].tolist()
            raise ValueError(
                "Expected inputs without NaN. Received: an array of shape "
                f"{array.shape} with NaN in its rows {rows} (the first ones). "
                "Drop these samples, or fill them in."
            )


class FiniteLoss(keras.callbacks.Callback):
    """Says what may be wrong once the loss of an epoch is NaN."""

    def on_epoch_end(self, epoch, logs=None):
        loss = (logs or {}).get("loss")
        if loss is not None and np.isnan(loss):
            head = self.model.head
            labels = (
                f", labels outside 0 ... {head.units - 1}"
                if head.task == "classification"
                else ""
            )
            raise ValueError(
                f"Expected a finite loss. Received: NaN in epoch {epoch + 1}. "
                f"Look for NaN among the inputs{labels}, or a learning rate "
                "that is too large."
            )
