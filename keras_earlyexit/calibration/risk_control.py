"""Chooses the smallest exit threshold whose risk is under control.

Why the walk: a threshold is taken only together with all larger ones. The
guarantees of the upper bounds and of fixed-sequence testing rest on that
order, and it also shields the simpler rules from a measured risk that is not
monotone, which happens on real data.
"""

import difflib

import numpy as np

from keras_earlyexit.calibration import _checks, bounds


def control_risk(
    losses,
    thresholds,
    epsilon,
    delta=0.1,
    method="ucb",
    bound=1.0,
    assume_monotone=False,
):
    """Smallest threshold that keeps the risk within `epsilon`.

    A sample leaves where its score is strictly above the threshold t, so the
    largest threshold is the safest and the smallest the fastest. With n
    samples, mean loss M(t) and B = `bound`, threshold t is admissible by

    - `empirical`: M(t) < epsilon. No guarantee.
    - `crc`: (n M(t) + B) / (n + 1) <= epsilon. E[risk] <= epsilon, on average
      over calibration sets.
    - `ucb`: U(t) < epsilon. P(risk <= epsilon) >= 1 - delta.
    - `ucb_hb`: H(t) < epsilon. The same.
    - `ltt`: p(t) <= delta. The same.

    U is `wsr_upper_bound`. H and p are the Hoeffding-Bentkus upper bound and
    p-value of losses clipped at 0 and divided by B, against epsilon / B; if
    all of these are 0 or 1, `ltt` takes the exact binomial tail.

    The answer is the smallest threshold that is admissible together with all
    larger ones. All guarantees need a calibration set that was used for
    nothing else. `crc` also needs a risk that does not grow with the
    threshold; the walk from the largest one down spares the others that.
    Losses below 0 (an early exit that beats the full model) help
    `empirical`, `crc` and `ucb` only.

    Args:
        losses: array (n, L); column j holds every sample's loss at
            `thresholds[j]`, in [-bound, bound].
        thresholds: array (L,), strictly increasing or strictly decreasing,
            in units of the score.
        epsilon: the risk that is allowed, in units of the loss, in (0, 1).
        delta: the chance that the risk is above `epsilon` all the same, in
            (0, 1). Not used by `empirical` and `crc`.
        method: `empirical`, `crc`, `ucb`, `ucb_hb` or `ltt`.
        bound: B, the largest absolute loss: 1 for zero-one, 2 for Brier.
        assume_monotone: take the smallest admissible threshold anywhere,
            even below one that is not. Changes `empirical` and `crc` only:
            the others have no guarantee without the walk.

    Returns:
        The threshold, a float. `inf`, so that nobody leaves, if there is
        none: promise nothing about speed from a successful call.

    Raises:
        ValueError: if `losses` is empty, holds NaN or leaves
            [-bound, bound]; if `thresholds` does not match it or is not
            strictly monotone; if `epsilon`, `delta`, `bound` or `method` is
            out of range.
        TypeError: if `losses` or `thresholds` does not hold real numbers.

    Example:

    >>> import numpy as np
    >>> thresholds = np.array([0.9, 0.7, 0.5])
    >>> losses = np.zeros((200, 3))
    >>> losses[:4, 1] = 1  # two samples in a hundred differ
    >>> losses[:40, 2] = 1
    >>> control_risk(losses, thresholds, epsilon=0.05, method="crc")
    0.7
    >>> control_risk(losses, thresholds, epsilon=0.002, method="crc")
    inf

    Reference: Jazbec et al., "Fast yet Safe: Early-Exiting with Risk
    Control", 2024 (arXiv 2405.20915).
    """
    epsilon = _checks.fraction(
        "epsilon", epsilon, "It is the risk that is allowed, for example 0.02."
    )
    delta = _checks.fraction(
        "delta", delta, "It is the chance of a wrong answer, for example 0.1."
    )
    bound = _checks.positive(
        "bound", bound, "It is the largest loss: 1 for zero-one, 2 for Brier."
    )
    rule = _find_rule(method)
    losses = _checks.bounded_losses(losses, bound, (2,))
    thresholds = _check_thresholds(thresholds, losses)
    if thresholds[0] < thresholds[-1]:
        losses, thresholds = losses[:, ::-1], thresholds[::-1]
    admissible = rule(losses, epsilon, delta, bound)
    if assume_monotone and method in ("empirical", "crc"):
        count = len(admissible) - np.argmax(admissible[::-1])
        count = count if admissible.any() else 0
    else:
        count = len(admissible) if admissible.all() else admissible.argmin()
    return float(thresholds[count - 1]) if count else float("inf")


def _empirical(losses, epsilon, delta, bound):
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
    "empirical": _empirical,
    "crc": _conformal,
    "ucb": _betting,
    "ucb_hb": _hoeffding_bentkus,
    "ltt": _learn_then_test,
}


def _find_rule(method):
    if isinstance(method, str) and method in _RULES:
        return _RULES[method]
    near = difflib.get_close_matches(str(method), _RULES, n=2, cutoff=0.4)
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(
        f"`method` must be one of {', '.join(map(repr, _RULES))}. "
        f"Received method={_checks.describe(method)}. {hint}'ucb' is the "
        "default: it holds with probability 1 - delta."
    )


def _check_thresholds(thresholds, losses):
    thresholds = _checks.numeric("thresholds", thresholds)
    if thresholds.shape != losses.shape[1:]:
        raise ValueError(
            "`thresholds` must be an array (L,) with one entry per column of "
            f"`losses`. Received thresholds of shape {thresholds.shape} and "
            f"losses of shape {losses.shape}. Pass losses as (samples, "
            "thresholds); transpose them if they are the other way round."
        )
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
