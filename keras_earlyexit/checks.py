"""Data that cannot be right is refused before it costs an epoch."""

import keras
import numpy as np


def check_data(head, x, y, *, sample_weight=None, class_weight=None):
    """Refuses labels and weights that do not fit, and NaN among the inputs.

    Arrays are looked at as a whole; datasets and generators are not consumed.

    Args:
        head: The model's `tasks.Head`.
        x: What `fit` or `evaluate` was given as `x`.
        y: The same for `y`.
        sample_weight: The same; one weight for each sample.
        class_weight: The same; for heads with one answer per sample.

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
    if class_weight is not None and head.positions:
        raise ValueError(
            "Expected `class_weight` only for a model that answers once for "
            f"each sample. Received: class_weight={class_weight!r} for a head "
            f"that answers at positions of shape {head.positions}. Leave it "
            "out, or weight the samples with `sample_weight`."
        )
    if _is_array(sample_weight):
        _check_weights(sample_weight, len(arrays[0]))
    for array in arrays:
        refuse_nan(array)


def _is_array(value):
    return (
        isinstance(value, np.ndarray) or keras.ops.is_tensor(value)
    ) and len(value.shape) > 0


def _check_weights(sample_weight, count):
    weights = np.asarray(keras.ops.convert_to_numpy(sample_weight))
    if weights.shape not in ((count,), (count, 1)):
        raise ValueError(
            f"Expected one weight for each sample, shape ({count},). "
            f"Received: sample_weight of shape {weights.shape}. Weights for "
            "each position are not supported: take their mean."
        )
    if np.isnan(weights).any():
        raise ValueError(
            "Expected weights without NaN. Received: sample_weight with NaN "
            f"in its rows {np.flatnonzero(np.isnan(weights))[:5].tolist()} "
            "(the first ones)."
        )


def refuse_nan(array, name="x", rows_at_once=4096):
    """Refuses NaN; looked for in the inputs, since a ReLU may make 0 of it.

    Args:
        array: Array or tensor (n, ...).
        name: What to call it.
        rows_at_once: Rows that are looked at together.

    Raises:
        ValueError: If there is NaN in it.
    """
    rows = []
    for start in range(0, len(array), rows_at_once):
        part = array[start : start + rows_at_once]
        if not isinstance(part, np.ndarray):
            part = keras.ops.convert_to_numpy(part)
        if part.dtype.kind != "f":
            return
        found = np.isnan(part)
        if found.any():
            found = found.reshape(len(part), -1).any(axis=1)
            rows += (start + np.flatnonzero(found)).tolist()
    if rows:
        raise ValueError(
            f"Expected finite inputs. Received: '{name}' with NaN in "
            f"{len(rows)} of {len(array)} samples, the first of them at rows "
            f"{rows[:5]}. Drop these samples, or fill them in."
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
