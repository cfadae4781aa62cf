"""Reads a data set for `observe`: batches, scores, labels in one form."""

import sys
import time

import numpy as np

_BAR_AFTER_S = 3.0


def yields_batches(x):
    """Whether `x` is a dataset or generator, which may bring its labels."""
    arrays = isinstance(x, (dict, list, tuple)) or hasattr(x, "__array__")
    return not arrays


def open_data(model, x, y, batch_size):
    """Batches of inputs, their number if known, and the labels they bring.

    The list of labels fills up while the batches are read.
    """
    import keras

    from keras_earlyexit.inputs import as_batches
    from keras_earlyexit.routing import DEFAULT_BATCH_SIZE

    reference = model.net.input
    batch_size = batch_size or DEFAULT_BATCH_SIZE
    batches, total = as_batches(x, reference, batch_size)
    if not yields_batches(x):
        return batches, total, []
    if y is not None:
        raise ValueError(
            "Expected labels inside the data, batches (x, y), since `x` "
            f"yields batches. Received: x of type {type(x).__name__} and y of "
            f"type {type(y).__name__}. Zip them, and leave `y` out."
        )
    if hasattr(x, "cardinality") and int(x.cardinality()) == -1:
        raise ValueError(
            "Expected data that ends. Received: a dataset that repeats "
            "without end. Leave out `repeat()`, or take some batches: "
            "`x.take(100)`."
        )
    labels = []

    def elements():
        items = x
        if isinstance(x, keras.utils.PyDataset):
            items = (x[i] for i in range(total))
        for element in items:
            if isinstance(element, tuple) and len(element) > 1:
                labels.append(element[1])
            yield element

    return as_batches(elements(), reference, batch_size)[0], total, labels


def scores_of(policy, head, predictions, confidences):
    """Scores of all early exits: float32 (batch, E).

    Args:
        policy: The policy that makes them.
        head: The model's `tasks.Head`.
        predictions: List of E arrays, in the head's own form.
        confidences: Array (batch, E), or `None` if the policy reads none.
    """
    import keras

    from keras_earlyexit.policies import score_of

    found, carry = [], None
    for k, prediction in enumerate(predictions):
        confidence = None
        if confidences is not None:
            confidence = keras.ops.convert_to_tensor(confidences[:, k : k + 1])
        score, carry = score_of(
            policy,
            head,
            keras.ops.convert_to_tensor(prediction),
            confidence,
            carry,
            k,
        )
        found.append(keras.ops.convert_to_numpy(score).astype("float32"))
    return np.stack(found, axis=1)


def as_labels(head, y, shape):
    """Labels in one form, checked, for predictions of some shape."""
    import keras

    y = keras.ops.convert_to_numpy(y)
    if y.dtype == bool:
        y = y.astype("int64")
    if len(y) != shape[0]:
        raise ValueError(
            "Expected one label for each sample. Received: "
            f"{shape[0]} samples and {len(y)} labels."
        )
    if head.task == "classification":
        return _as_classes(head, y, shape)
    if y.size != np.prod(shape):
        head.check_labels(y)
        raise _wrong_shape(y, shape)
    y = y.reshape(shape)
    if np.isnan(y).any():
        raise ValueError(
            "Expected labels without NaN. Received: y with NaN in the rows "
            f"{_nan_rows(y)[:5].tolist()}. Drop these samples."
        )
    if head.task == "regression":
        return y
    head.check_labels(y)
    return np.round(y).astype("int64")


def _as_classes(head, y, shape):
    if y.shape == shape:
        return y.argmax(axis=-1)
    if y.shape == (*shape[:-1], 1):
        y = y[..., 0]
    if y.shape != shape[:-1]:
        head.check_labels(y)
        raise _wrong_shape(y, shape)
    head.check_labels(y)
    return y.astype("int64")


def _wrong_shape(y, shape):
    return ValueError(
        f"Expected labels that fit answers of shape {shape}. Received: y of "
        f"shape {y.shape} and dtype {y.dtype}."
    )


def _nan_rows(array):
    return np.flatnonzero(np.isnan(array.reshape(len(array), -1)).any(axis=1))


def refuse_nan(arrays):
    rows = np.unique(np.concatenate([_nan_rows(array) for array in arrays]))
    if len(rows):
        raise ValueError(
            "Expected finite inputs and weights. Received: inputs for which "
            f"the answers of {len(rows)} samples are NaN, at rows "
            f"{rows[:5].tolist()}. Look for NaN in these rows "
            "(`np.isnan(x)`), or for weights that training has driven to NaN."
        )


def _is_watched():
    return sys.stdout.isatty()


class Progress:
    """A progress bar that shows itself only when it is needed."""

    def __init__(self, total, verbose):
        self._total = total
        self._bar = None
        self._done = 0
        shown_from = {"auto": _BAR_AFTER_S, 0: np.inf}.get(verbose, 0.0)
        if verbose == "auto" and not _is_watched():
            # In a notebook or a file what moves the cursor makes a mess.
            shown_from = np.inf
        self._shown_from = shown_from
        self._start = time.monotonic()

    def advance(self):
        import keras

        self._done += 1
        late = time.monotonic() - self._start >= self._shown_from
        if self._bar is None and late and self._done != self._total:
            self._bar = keras.utils.Progbar(self._total)
        if self._bar is not None:
            self._bar.update(self._done)

    def close(self):
        if self._bar is not None and self._total is None:
            self._bar.update(self._done, finalize=True)
