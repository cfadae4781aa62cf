"""Calibration error and conformal sets as Keras metrics, batch by batch.

They go into `metrics=[...]` of `compile`, which makes one for every exit and
one for the routed answers, or work on their own with `update_state`.
"""

import keras
from keras import ops

from keras_earlyexit.calibration import _checks

PACKAGE = "keras_earlyexit"


@keras.saving.register_keras_serializable(package=PACKAGE)
class CalibrationError(keras.metrics.Metric):
    """Expected calibration error over everything seen since the last reset.

        sum_b n_b / n |accuracy_b - confidence_b|

    over bins of equal width of the largest probability, as
    `expected_calibration_error` computes it from arrays. For classifiers; each
    position of an answer counts as a sample.

    Args:
        num_bins: Number of bins, at least 1.
        from_logits: Whether predictions are logits.
        name: Name of the metric.

    Raises:
        ValueError: If `num_bins` is no integer of at least 1.

    Example:

    ```python
    model.compile(
        "adam", metrics=["accuracy", ee.calibration.CalibrationError()]
    )
    model.evaluate(x, y, return_dict=True)["exit_0_calibration_error"]
    ```

    Reference:
        Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian
        Binning, AAAI 2015.
    """

    def __init__(
        self,
        num_bins=15,
        from_logits=False,
        name="calibration_error",
        dtype="float32",
    ):
        super().__init__(name=name, dtype=dtype)
        self.num_bins = _checks.count("num_bins", num_bins, "15 is usual.")
        self.from_logits = bool(from_logits)
        self.counts, self.confidences, self.rights = (
            self.add_variable(
                (self.num_bins,), initializer="zeros", name=variable
            )
            for variable in ("counts", "confidences", "rights")
        )

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds a batch.

        Args:
            y_true: Classes (batch, ...), (batch, ..., 1) or one-hot.
            y_pred: Probabilities, or logits, (batch, ..., classes).
            sample_weight: `None` or (batch,) or (batch, ...).
        """
        probabilities = _probabilities(y_pred, self.from_logits)
        labels = _labels(y_true, probabilities)
        confidence = ops.max(probabilities, axis=-1)
        found = ops.cast(ops.argmax(probabilities, axis=-1), "int32")
        right = ops.cast(found == labels, "float32")
        weight = _weights(sample_weight, confidence)
        inner = ops.arange(1, self.num_bins, dtype="float32") / self.num_bins
        # A bin holds its upper edge, as in `reliability_data`.
        place = ops.sum(
            ops.cast(confidence[..., None] > inner, "int32"), axis=-1
        )
        share = ops.one_hot(place, self.num_bins, dtype="float32")
        share = ops.reshape(share * weight[..., None], (-1, self.num_bins))
        for total, values in (
            (self.counts, ops.ones_like(confidence)),
            (self.confidences, confidence),
            (self.rights, right),
        ):
            column = ops.reshape(values, (-1, 1))
            total.assign_add(ops.sum(share * column, axis=0))

    def result(self):
        gap = ops.sum(ops.abs(self.rights - self.confidences))
        return ops.divide_no_nan(gap, ops.sum(self.counts))

    def get_config(self):
        return {
            **super().get_config(),
            "num_bins": self.num_bins,
            "from_logits": self.from_logits,
        }


class _SetMetric(keras.metrics.Mean):
    """Mean of a figure of conformal sets. Subclasses define `figure`."""

    def __init__(self, quantile, from_logits=False, name=None, dtype="float32"):
        super().__init__(name=name, dtype=dtype)
        self.quantile = _checks.real(
            "quantile", quantile, "It is what `conformal_quantile` returns."
        )
        self.from_logits = bool(from_logits)

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds a batch; see `CalibrationError.update_state`."""
        probabilities = _probabilities(y_pred, self.from_logits)
        # The same form as in `prediction_sets`.
        sets = ops.cast(1.0 - probabilities <= self.quantile, "float32")
        values = self.figure(sets, y_true)
        weight = _weights(sample_weight, values)
        super().update_state(values, sample_weight=weight)

    def get_config(self):
        return {
            **super().get_config(),
            "quantile": self.quantile,
            "from_logits": self.from_logits,
        }


@keras.saving.register_keras_serializable(package=PACKAGE)
class SetCoverage(_SetMetric):
    """Share of the conformal sets that hold the true class.

    A class k is in the set if 1 - p_k <= `quantile`. With a quantile from
    `conformal_quantile(1 - p[label], alpha)` of other samples the share is
    at least 1 - `alpha` on average.

    Args:
        quantile: The largest non-conformity score 1 - p of a class in the
            set; one for all exits (`conformal_quantiles(..., pooled=True)`).
        from_logits: Whether predictions are logits.
        name: Name of the metric.

    Raises:
        ValueError: If `quantile` is NaN or no number.

    Example:

    ```python
    coverage = ee.calibration.SetCoverage(quantile=0.9)
    coverage.update_state(y, model.predict(x))
    ```
    """

    def __init__(
        self,
        quantile,
        from_logits=False,
        name="set_coverage",
        dtype="float32",
    ):
        super().__init__(quantile, from_logits, name, dtype)

    def figure(self, sets, y_true):
        labels = _labels(y_true, sets)
        held = ops.one_hot(labels, sets.shape[-1], dtype="float32") * sets
        return ops.sum(held, axis=-1)


@keras.saving.register_keras_serializable(package=PACKAGE)
class SetSize(_SetMetric):
    """Mean number of classes in the conformal sets; see `SetCoverage`.

    Args:
        quantile: The largest non-conformity score 1 - p of a class in the
            set.
        from_logits: Whether predictions are logits.
        name: Name of the metric.

    Raises:
        ValueError: If `quantile` is NaN or no number.
    """

    def __init__(
        self, quantile, from_logits=False, name="set_size", dtype="float32"
    ):
        super().__init__(quantile, from_logits, name, dtype)

    def figure(self, sets, y_true):
        return ops.sum(sets, axis=-1)


def _probabilities(y_pred, from_logits):
    """Float32 probabilities (batch, ..., classes)."""
    prediction = ops.cast(ops.convert_to_tensor(y_pred), "float32")
    if len(prediction.shape) < 2 or prediction.shape[-1] < 2:
        raise ValueError(
            "Expected predictions (batch, ..., classes) of at least two "
            f"classes. Received: shape {tuple(prediction.shape)}. For one "
            "probability p give [1 - p, p]."
        )
    return ops.softmax(prediction, axis=-1) if from_logits else prediction


def _labels(y_true, probabilities):
    """Class numbers (batch, ...) of labels in any form."""
    y_true = ops.convert_to_tensor(y_true)
    rank, classes = len(probabilities.shape), probabilities.shape[-1]
    if len(y_true.shape) == rank:
        if y_true.shape[-1] == classes:
            return ops.cast(ops.argmax(y_true, axis=-1), "int32")
        if y_true.shape[-1] == 1:
            y_true = ops.squeeze(y_true, axis=-1)
    if len(y_true.shape) != rank - 1:
        raise ValueError(
            f"Expected labels that fit predictions of shape "
            f"{tuple(probabilities.shape)}: class numbers without the last "
            f"axis, or one-hot. Received: shape {tuple(y_true.shape)}."
        )
    return ops.cast(y_true, "int32")


def _weights(sample_weight, values):
    """Weights of the shape of `values` (batch, ...)."""
    if sample_weight is None:
        return ops.ones_like(values)
    weight = ops.cast(ops.convert_to_tensor(sample_weight), "float32")
    missing = len(values.shape) - len(weight.shape)
    if missing < 0 and weight.shape[-1] == 1:
        weight, missing = ops.squeeze(weight, axis=-1), missing + 1
    for _ in range(missing):
        weight = weight[..., None]
    return weight * ops.ones_like(values)
