"""The rules by which a threshold is admissible, and the order of the walk."""

import difflib

import numpy as np

from keras_earlyexit.calibration import _checks, bounds


def empirical(losses, epsilon, delta, bound):
    """Whether the mean loss of each column is below `epsilon`."""
    return losses.mean(axis=0, dtype="float64") < epsilon


def _conformal(losses, epsilon, delta, bound):
    # One division, so that 5 / 100 <= 0.05 holds in floating point too.
    total = losses.sum(axis=0, dtype="float64")
    return (total + bound) / (len(losses) + 1) <= epsilon


def _betting(losses, epsilon, delta, bound):
    return bounds.wsr_bound_below(losses, epsilon, delta, bound)


def _hoeffding_bentkus(losses, epsilon, delta, bound):
    # The p-value falls as the tested risk grows, so that the upper bound is
    # below epsilon exactly where epsilon itself is rejected.
    losses = _unit_losses(losses, bound)
    return _p_values(losses, epsilon / bound, binary=False) < delta


def _learn_then_test(losses, epsilon, delta, bound):
    losses = _unit_losses(losses, bound)
    binary = bool(np.all((losses == 0) | (losses == 1)))
    return _p_values(losses, epsilon / bound, binary) <= delta


def _p_values(losses, epsilon, binary):
    if epsilon >= 1:  # No loss exceeds it.
        return np.zeros(losses.shape[1])
    return bounds.hoeffding_bentkus_p_value(
        losses.mean(axis=0), len(losses), epsilon, binary
    )


def _unit_losses(losses, bound):
    return np.clip(losses.astype("float64") / bound, 0, 1)


_RULES = {
    "empirical": empirical,
    "crc": _conformal,
    "ucb": _betting,
    "ucb_hb": _hoeffding_bentkus,
    "ltt": _learn_then_test,
}


def find_rule(method):
    """The function (losses, epsilon, delta, bound) -> bool (L,) of a method."""
    if isinstance(method, str) and method in _RULES:
        return _RULES[method]
    near = difflib.get_close_matches(str(method), _RULES, n=2, cutoff=0.4)
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(
        f"`method` must be one of {', '.join(map(repr, _RULES))}. "
        f"Received method={_checks.describe(method)}. {hint}'ucb' is the "
        "default: it holds with probability 1 - delta."
    )


def check_thresholds(thresholds, losses, nested):
    """Thresholds (L,) or (L, E) that fit losses (n, L), as an array."""
    thresholds = _checks.numeric("thresholds", thresholds)
    rows = thresholds.ndim == 2 and thresholds.shape[1] > 0
    if not (rows or thresholds.ndim == 1) or len(thresholds) != losses.shape[1]:
        raise ValueError(
            "`thresholds` must be an array (L,), or (L, E), with one entry per "
            "column of `losses`. Received thresholds of shape "
            f"{thresholds.shape} and losses of shape {losses.shape}. Pass "
            "losses as (samples, thresholds); transpose them if they are the "
            "other way round."
        )
    if rows:
        _check_rows(thresholds, nested)
        return thresholds
    rising = thresholds[1:] > thresholds[:-1]
    falling = thresholds[1:] < thresholds[:-1]
    if np.isnan(thresholds).any() or not (rising.all() or falling.all()):
        raise ValueError(
            "`thresholds` must be strictly increasing or strictly "
            "decreasing, without NaN. Received "
            f"thresholds={_checks.describe(thresholds)}. Sort them with "
            "np.unique(thresholds, return_index=True) and reorder the "
            "columns of `losses` alike."
        )
    return thresholds


def _check_rows(thresholds, nested):
    if np.isnan(thresholds).any():
        raise ValueError(
            "`thresholds` must be free of NaN. Received "
            f"thresholds={_checks.describe(thresholds)}."
        )
    above = np.flatnonzero((thresholds[1:] > thresholds[:-1]).any(axis=1))
    if nested and len(above):
        k = above[0]
        raise ValueError(
            "For 'crc' and `assume_monotone` no threshold of a row of "
            "`thresholds` may be above that of the row before, so that the "
            f"risk grows along the rows. Received {thresholds[k].tolist()} "
            f"and then {thresholds[k + 1].tolist()} (rows {k} and {k + 1}). "
            "Take np.minimum.accumulate(thresholds, axis=0), or 'ucb' or "
            "'ltt' without `assume_monotone`."
        )


def walk_order(thresholds):
    """Columns from the most careful threshold on: falling, or as they come."""
    order = np.arange(len(thresholds))
    rising = thresholds.ndim == 1 and thresholds[0] < thresholds[-1]
    return order[::-1] if rising else order


def threshold_at(thresholds, index):
    """A threshold as floats; `inf` without an index."""
    if thresholds.ndim == 2:
        if index is None:
            return (float("inf"),) * thresholds.shape[1]
        return tuple(float(value) for value in thresholds[index])
    return float("inf") if index is None else float(thresholds[index])
