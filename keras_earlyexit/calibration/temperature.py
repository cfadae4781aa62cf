"""Temperature scaling: one number per exit that repairs its confidences.

Choose temperatures before thresholds, and on samples that neither training
nor the choice of thresholds has seen: scores move with the temperature.
"""

import numpy as np

from keras_earlyexit.calibration import _checks

# A temperature outside leaves no information (or nothing but the argmax).
_LOWEST, _HIGHEST = 1e-2, 1e2


def fit_temperature(logits, labels):
    """Temperature that minimises the negative log likelihood.

    Finds T in [0.01, 100] that minimises

        -mean_i log softmax(logits_i / T)[labels_i]

    by a bounded scalar search over ln T. The loss is convex in 1/T, so that
    there is one minimum. If every sample is right it falls towards T = 0, and
    the answer is some small number; if the logits are worse than nothing, it
    is 100. Log-probabilities serve as logits: softmax gives the probabilities
    back. Accuracy does not change, only confidence does.

    Args:
        logits: array (n, classes), logits or log-probabilities, all finite.
        labels: integer array (n,), in [0, classes).

    Returns:
        The temperature, a float without a unit; above 1 for an
        over-confident exit.

    Raises:
        ValueError: if `logits` is empty, not (n, classes) or not finite, or
            if `labels` does not match it.
        TypeError: if either does not hold numbers.

    Example:

    >>> import numpy as np
    >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
    >>> labels = np.array([0, 0, 0, 1])  # right three times out of four
    >>> temperature = fit_temperature(logits, labels)
    >>> bool(np.isclose(temperature, 4 / np.log(3), atol=1e-4))
    True

    Reference: Guo et al., "On calibration of modern neural networks", 2017
    (arXiv 1706.04599).
    """
    from scipy import optimize

    logits = _check_logits(logits)
    labels = _checks.class_labels(labels, logits, "logits")
    # Differences to the true class: the loss is log sum exp(margin / T).
    margins = logits - np.take_along_axis(logits, labels[:, None], axis=1)
    top = margins.max(axis=1, keepdims=True)
    margins = margins - top

    def negative_log_likelihood(log_temperature):
        scale = np.exp(-log_temperature)
        total = np.log(np.exp(margins * scale).sum(axis=1))
        return float(np.mean(total + top[:, 0] * scale))

    result = optimize.minimize_scalar(
        negative_log_likelihood,
        bounds=(np.log(_LOWEST), np.log(_HIGHEST)),
        method="bounded",
        options={"xatol": 1e-7},
    )
    return float(np.exp(result.x))


def apply_temperature(logits, temperature):
    """Probabilities at a temperature: softmax(logits / temperature).

    Args:
        logits: array (..., classes), logits or log-probabilities.
        temperature: a positive float, as `fit_temperature` returns it.

    Returns:
        A float64 array of the same shape, in [0, 1], summing to 1 over the
        last axis.

    Raises:
        ValueError: if `logits` has no classes axis or is not finite, or if
            `temperature` is not a finite number above 0.
        TypeError: if `logits` does not hold numbers.

    Example:

    >>> import numpy as np
    >>> apply_temperature(np.log([0.9, 0.1]), 2.0).round(2)
    array([0.75, 0.25])
    """
    temperature = _checks.positive(
        "temperature", temperature, "1 changes nothing."
    )
    logits = _check_finite(_checks.numeric("logits", logits))
    scaled = logits / temperature
    scaled = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return scaled / scaled.sum(axis=-1, keepdims=True)


def _check_logits(logits):
    logits = _checks.numeric("logits", logits)
    if logits.ndim != 2:
        raise ValueError(
            "`logits` must be an array (n, classes). Received shape "
            f"{logits.shape} ({logits.dtype}). Fit one exit at a time."
        )
    return _check_finite(logits)


def _check_finite(logits):
    if logits.ndim == 0 or logits.size == 0 or not np.isfinite(logits).all():
        raise ValueError(
            "`logits` must be non-empty and finite. Received shape "
            f"{logits.shape} ({logits.dtype}) with "
            f"{int((~np.isfinite(logits)).sum())} values that are not finite. "
            "For log-probabilities use np.log(np.maximum(p, 1e-12))."
        )
    return logits.astype("float64")
