"""Whether confidences can be believed: calibration error, conformal sets."""

import dataclasses

import numpy as np

from keras_earlyexit.calibration import _checks

_BINNINGS = ("equal_width", "equal_mass")


@dataclasses.dataclass(frozen=True, eq=False)
class ReliabilityData:
    """Confidence against accuracy in bins, as a reliability diagram shows it.

    Attributes:
        edges: float array (num_bins + 1,); bin b holds the samples in
            (edges[b], edges[b + 1]], the first bin its lower edge too.
        confidence: float array (num_bins,), mean confidence; NaN if empty.
        accuracy: float array (num_bins,), share of right answers; NaN if
            empty.
        count: integer array (num_bins,), number of samples.
    """

    edges: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def expected_calibration_error(self):
        """sum_b count_b / n * |accuracy_b - confidence_b|, a float."""
        filled = self.count > 0
        gap = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float(np.average(gap, weights=self.count[filled]))


def top_label(probabilities, labels):
    """Confidence of the most probable class, and whether it is right.

    Args:
        probabilities: array (n, classes).
        labels: integer array (n,), in [0, classes).

    Returns:
        A tuple of the largest probability, float64 (n,), and whether its
        class (the first one of equals) is the label, bool (n,).

    Raises:
        ValueError: if the shapes do not match or a value is out of range.
        TypeError: if either does not hold numbers.

    Example:

    >>> confidence, correct = top_label([[0.7, 0.3], [0.4, 0.6]], [0, 0])
    >>> confidence, correct
    (array([0.7, 0.6]), array([ True, False]))
    """
    probabilities = _check_probabilities(probabilities, 2)
    labels = _checks.class_labels(labels, probabilities, "probabilities")
    predicted = probabilities.argmax(axis=1)
    return probabilities.max(axis=1), predicted == labels


def reliability_data(confidence, correct, num_bins=15, binning="equal_width"):
    """Mean confidence and accuracy of the samples, in bins of confidence.

    `equal_width` divides [0, 1] into equal parts; `equal_mass` divides the
    samples into groups of equal size (up to ties, which share a bin).

    Args:
        confidence: array (n,), in [0, 1]; see `top_label`.
        correct: array (n,) of 0 and 1 or booleans.
        num_bins: number of bins, at least 1.
        binning: `equal_width` or `equal_mass`.

    Returns:
        A `ReliabilityData`.

    Raises:
        ValueError: if the arrays are empty, differ in length or leave
            [0, 1], or if `num_bins` or `binning` is unknown.
        TypeError: if either array does not hold numbers.

    Example:

    >>> data = reliability_data([0.2, 0.9, 0.7], [0, 1, 1], num_bins=2)
    >>> data.count, data.accuracy
    (array([1, 2]), array([0., 1.]))
    >>> round(data.expected_calibration_error, 2)
    0.2
    """
    confidence = _check_probabilities(confidence, 1, "confidence")
    correct = _check_probabilities(correct, 1, "correct")
    _checks.same_length("confidence", confidence, "correct", correct)
    num_bins = _checks.count("num_bins", num_bins, "15 is usual.")
    if binning not in _BINNINGS:
        raise ValueError(
            "`binning` must be 'equal_width' or 'equal_mass'. Received "
            f"binning={_checks.describe(binning)}. 'equal_mass' has no bins "
            "with few samples."
        )
    if binning == "equal_width":
        edges = np.linspace(0.0, 1.0, num_bins + 1)
    else:
        ranked = np.sort(confidence)
        ends = np.ceil(np.arange(num_bins + 1) * len(ranked) / num_bins)
        edges = ranked[np.maximum(ends.astype(int) - 1, 0)]
    index = np.searchsorted(edges[1:-1], confidence, side="left")
    count = np.bincount(index, minlength=num_bins)
    share = np.where(count > 0, 1.0, np.nan) / np.maximum(count, 1)
    return ReliabilityData(
        edges=edges,
        confidence=np.bincount(index, confidence, num_bins) * share,
        accuracy=np.bincount(index, correct, num_bins) * share,
        count=count,
    )


def expected_calibration_error(
    confidence, correct, num_bins=15, binning="equal_width"
):
    """Mean distance between confidence and accuracy, bin by bin.

        sum_b n_b / n |accuracy_b - confidence_b|

    A biased estimate: it is above 0 for a perfectly calibrated model too,
    the more so the more bins and the fewer samples there are.

    Args:
        confidence: array (n,), in [0, 1]; see `top_label`.
        correct: array (n,) of 0 and 1 or booleans.
        num_bins: number of bins, at least 1.
        binning: `equal_width` or `equal_mass`.

    Returns:
        The error, a float in [0, 1].

    Raises:
        ValueError: as `reliability_data`.
        TypeError: as `reliability_data`.

    Example:

    >>> confidence, correct = top_label([[0.7, 0.3], [0.4, 0.6]], [0, 0])
    >>> round(expected_calibration_error(confidence, correct), 2)
    0.45

    Reference: Naeini et al., "Obtaining well calibrated probabilities using
    Bayesian binning", 2015.
    """
    data = reliability_data(confidence, correct, num_bins, binning)
    return data.expected_calibration_error


def conformal_quantile(scores, alpha):
    """Score that a new sample stays within with probability 1 - alpha.

    The k-th smallest of the n scores, k = ceil((n + 1)(1 - alpha)); `inf` if
    k > n, that is, if there are too few samples for so small an `alpha`.

    Args:
        scores: array (n,) of non-conformity scores, larger is worse.
        alpha: the chance that a new score is larger, in (0, 1).

    Returns:
        The quantile in units of the score, a float.

    Raises:
        ValueError: if `scores` is not (n,), is empty or holds NaN, or if
            `alpha` is out of range.
        TypeError: if `scores` does not hold numbers.

    Example:

    >>> conformal_quantile([0.1, 0.2, 0.3, 0.4], alpha=0.2)
    0.4
    >>> conformal_quantile([0.1, 0.2, 0.3, 0.4], alpha=0.1)
    inf

    Reference: Vovk et al., "Algorithmic learning in a random world", 2005.
    """
    alpha = _checks.fraction(
        "alpha", alpha, "It is the chance of a miss, for example 0.05."
    )
    scores = _checks.numeric("scores", scores)
    if scores.ndim != 1 or not len(scores) or np.isnan(scores).any():
        raise ValueError(
            "`scores` must be a non-empty array (n,) without NaN. Received "
            f"scores={_checks.describe(scores)}. Pass one score per "
            "calibration sample."
        )
    # (1 - 0.7) * 10 is 3.0000000000000004, which must not become 4.
    rank = int(np.ceil((len(scores) + 1) * (1 - alpha) - 1e-9))
    if rank > len(scores):
        return float("inf")
    return float(np.partition(scores, rank - 1)[rank - 1])


def conformal_quantiles(
    probabilities, labels, exit_index, alpha, pooled=False, minimum_count=21
):
    """Conformal quantile of 1 - p(label) for every exit.

    Each exit's quantile comes from the samples that leave there, so that the
    sets cover per exit. With `pooled=True` all samples, each at its own
    exit, give one quantile for all exits: coverage then holds on average over
    the exits. An exit where fewer than `minimum_count` samples leave uses
    all samples' predictions at that exit: samples that would not leave there
    are harder, the coverage of those that do is then not guaranteed.

    Args:
        probabilities: array (E + 1, n, classes), every exit's prediction.
        labels: integer array (n,), in [0, classes).
        exit_index: integer array (n,), the exit that each sample leaves at.
        alpha: the chance of a set without the true class, in (0, 1).
        pooled: whether one quantile serves all exits.
        minimum_count: samples an exit needs for a quantile of its own.

    Returns:
        A float64 array (E + 1,); use `quantiles[exit_index]` in
        `prediction_sets`.

    Raises:
        ValueError: if shapes do not match or a value is out of range.
        TypeError: if an array does not hold numbers.

    Example:

    >>> import numpy as np
    >>> probabilities = np.array([[[0.9, 0.1], [0.6, 0.4], [0.5, 0.5]]] * 2)
    >>> conformal_quantiles(
    ...     probabilities, [0, 0, 1], [0, 0, 1], alpha=0.25, pooled=True
    ... )
    array([0.5, 0.5])

    Reference: Regol et al., "Jointly-learned exit and inference for a
    dynamic neural network: JEI-DNN", 2024 (arXiv 2310.09163), has the rule
    with 21 samples.
    """
    probabilities = _check_probabilities(probabilities, 3)
    labels = _checks.class_labels(labels, probabilities[0], "probabilities[0]")
    num_exits, num_samples = probabilities.shape[:2]
    exit_index = _check_exit_index(exit_index, num_samples, num_exits)
    scores = 1 - probabilities[:, np.arange(num_samples), labels]
    if pooled:
        own = scores[exit_index, np.arange(num_samples)]
        return np.full(num_exits, conformal_quantile(own, alpha))
    quantiles = []
    for number, at_exit in enumerate(scores):
        own = at_exit[exit_index == number]
        enough = len(own) >= minimum_count
        quantiles.append(conformal_quantile(own if enough else at_exit, alpha))
    return np.array(quantiles)


def prediction_sets(probabilities, quantiles):
    """All classes whose score 1 - p is within the conformal quantile.

    Args:
        probabilities: array (n, classes), the answers.
        quantiles: a float, or an array (n,) with one per sample, for example
            `quantiles[exit_index]`.

    Returns:
        A bool array (n, classes): which classes are in the set; none may be.

    Raises:
        ValueError: if shapes do not match or a probability leaves [0, 1].
        TypeError: if an array does not hold numbers.

    Example:

    >>> prediction_sets([[0.9, 0.1], [0.6, 0.4]], 0.6)
    array([[ True, False],
           [ True,  True]])
    """
    probabilities = _check_probabilities(probabilities, 2)
    quantiles = _checks.numeric("quantiles", quantiles)
    if quantiles.ndim:
        _checks.same_length(
            "quantiles", quantiles, "probabilities", probabilities
        )
        quantiles = quantiles.reshape(-1, 1)
    # The form in which the scores were computed: p >= 1 - q rounds
    # differently and would lose the sample that set the quantile.
    return 1 - probabilities <= quantiles


def prediction_set_summary(sets, labels):
    """Mean size of prediction sets and the share that holds the label.

    Args:
        sets: bool array (n, classes), from `prediction_sets`.
        labels: integer array (n,), in [0, classes).

    Returns:
        A dict of floats: `mean_size` in classes, `coverage` in [0, 1]. Index
        both arguments with `exit_index == k` for the figures of one exit.

    Raises:
        ValueError: if shapes do not match or a label is out of range.
        TypeError: if an array does not hold numbers.

    Example:

    >>> sets = prediction_sets([[0.9, 0.1], [0.6, 0.4]], 0.6)
    >>> prediction_set_summary(sets, [1, 1])
    {'mean_size': 1.5, 'coverage': 0.5}
    """
    sets = _check_probabilities(sets, 2, "sets") > 0
    labels = _checks.class_labels(labels, sets, "sets")
    covered = np.take_along_axis(sets, labels[:, None], axis=1)
    return {
        "mean_size": float(sets.sum(axis=1).mean()),
        "coverage": float(covered.mean()),
    }


def _check_probabilities(values, dimensions, name="probabilities"):
    values = _checks.numeric(name, values)
    if values.ndim != dimensions or not values.size:
        shape = {1: "(n,)", 2: "(n, classes)", 3: "(E + 1, n, classes)"}
        raise ValueError(
            f"`{name}` must be a non-empty array {shape[dimensions]}. "
            f"Received shape {values.shape} ({values.dtype}). Reshape it "
            "without mixing samples and classes."
        )
    low, high = values.min(), values.max()
    # Rounding alone takes a float32 softmax above 1.
    if not (low >= 0 and high <= 1 + 1e-6):
        raise ValueError(
            f"`{name}` must be free of NaN and lie in [0, 1]. Received "
            f"values from {low} to {high} ({values.dtype}). For logits "
            "use apply_temperature(logits, 1.0) first."
        )
    return np.minimum(values.astype("float64"), 1.0)


def _check_exit_index(exit_index, num_samples, num_exits):
    exit_index = _checks.numeric("exit_index", exit_index)
    valid = exit_index.dtype.kind in "iu" and exit_index.shape == (num_samples,)
    if not valid or exit_index.min() < 0 or exit_index.max() >= num_exits:
        raise ValueError(
            f"`exit_index` must be an integer array ({num_samples},) in "
            f"[0, {num_exits}). Received "
            f"exit_index={_checks.describe(exit_index)}. Pass "
            "ExitResult.exit_index of the same samples."
        )
    return exit_index
