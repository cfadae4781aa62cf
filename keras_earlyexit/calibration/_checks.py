"""Checks of arguments that several modules of this package share."""

import numbers

import numpy as np


def describe(value):
    """`value (type)`, shortened, for the end of an error message."""
    text = " ".join(repr(value).split())
    if len(text) > 60:
        text = text[:57] + "..."
    return f"{text} ({type(value).__name__})"


def fraction(name, value, advice):
    """Returns `value` as a float; it must lie strictly between 0 and 1."""
    if not isinstance(value, numbers.Real) or not 0 < value < 1:
        raise ValueError(
            f"`{name}` must be a number strictly between 0 and 1. "
            f"Received {name}={describe(value)}. {advice}"
        )
    return float(value)


def positive(name, value, advice):
    """Returns `value` as a float; it must be finite and above 0."""
    if not isinstance(value, numbers.Real) or not 0 < value < np.inf:
        raise ValueError(
            f"`{name}` must be a finite number above 0. "
            f"Received {name}={describe(value)}. {advice}"
        )
    return float(value)


def real(name, value, advice):
    """Returns `value` as a float; it may be infinite but not NaN."""
    if not isinstance(value, numbers.Real) or np.isnan(value):
        raise ValueError(
            f"`{name}` must be a number. Received "
            f"{name}={describe(value)}. {advice}"
        )
    return float(value)


def count(name, value, advice):
    """Returns `value` as an int; it must be an integer of at least 1."""
    if not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(
            f"`{name}` must be an integer of at least 1. Received "
            f"{name}={describe(value)}. {advice}"
        )
    return int(value)


def numeric(name, value):
    """Returns `value` as an array of booleans, integers or floats."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"`{name}` must hold real numbers. Received an array of dtype "
            f"{array.dtype} ({type(value).__name__}). Convert it first, for "
            f"example with np.asarray({name}, dtype='float64')."
        )
    return array


def grid(thresholds, early):
    """Returns thresholds (L,) shared by all exits, or (L, early), checked."""
    array = numeric("thresholds", thresholds)
    shared = array.ndim == 1
    own = array.ndim == 2 and array.shape[1] == early
    if not (shared or own) or not array.size or np.isnan(array).any():
        raise ValueError(
            "Expected at least one threshold, and no NaN: an array (L,) for "
            f"all early exits, or (L, {early}) with one for each. Received: "
            f"thresholds={describe(thresholds)} of shape {array.shape}."
        )
    return array.astype("float64")


def same_length(name, value, other_name, other):
    """Raises unless both arrays have as many entries along axis 0."""
    if len(value) != len(other):
        raise ValueError(
            f"`{name}` and `{other_name}` must have the same length. Received "
            f"{name} of shape {value.shape} and {other_name} of shape "
            f"{other.shape}. Pass one entry per sample in both."
        )


def bounded_losses(losses, bound, dimensions):
    """Returns `losses` as an array with all entries in [-bound, bound].

    Entries that leave the range by rounding alone, a millionth of `bound` at
    most, are accepted: a Brier loss from float32 probabilities does that.
    """
    losses = numeric("losses", losses)
    if losses.ndim not in dimensions or losses.size == 0:
        shape = " or ".join({1: "(n,)", 2: "(n, L)"}[d] for d in dimensions)
        raise ValueError(
            f"`losses` must be a non-empty array of shape {shape}, one row "
            f"per sample. Received shape {losses.shape} "
            f"({losses.dtype}). Stack the losses of the calibration samples "
            "along the first axis."
        )
    low, high = losses.min(), losses.max()
    slack = 1e-6 * bound
    if not (low >= -bound - slack and high <= bound + slack):
        raise ValueError(
            f"`losses` must be free of NaN and lie in [-{bound}, {bound}]. "
            f"Received values from {low} to {high} ({losses.dtype}). Pass the "
            "loss's true range as `bound` (1 for zero-one, 2 for Brier) and "
            "drop samples without a loss."
        )
    return losses


def class_labels(labels, scores, scores_name):
    """Returns `labels` as integers (n,) that index the columns of `scores`."""
    labels = numeric("labels", labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise ValueError(
            "`labels` must be an integer array (n,). Received shape "
            f"{labels.shape} ({labels.dtype}). For one-hot labels pass "
            "labels.argmax(axis=1)."
        )
    same_length("labels", labels, scores_name, scores)
    num_classes = scores.shape[-1]
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"`labels` must lie in [0, {num_classes}), one class per column "
            f"of `{scores_name}`. Received labels from {labels.min()} to "
            f"{labels.max()} ({labels.dtype}). Check that both come from the "
            "same data set."
        )
    return labels
