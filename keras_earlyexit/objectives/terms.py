"""What a single answer costs, and how answers are mixed, for each task.

Every objective is written once over these few functions. `term` turns a
prediction into what is mixed, `mix` mixes two terms with a confidence, and
`loss` gives the loss of a term per sample. For classes and labels the term is
a log probability, so that the mixture h p + (1 - h) q is a `logaddexp` and
nothing overflows.
"""

import keras
from keras import ops

# The smallest probability that is taken apart from 0: a normal float32, whose
# inverse is finite too.
TINY = 1e-30


def safe_log(probability):
    """Logarithm of a probability; finite at 0."""
    return ops.log(ops.maximum(probability, TINY))


def _mean_over_positions(values):
    axes = tuple(range(1, len(values.shape)))
    return ops.mean(values, axis=axes) if axes else values


def _like(confidence, term):
    """A confidence (batch, 1), shaped to broadcast against a term."""
    missing = len(term.shape) - len(confidence.shape)
    shape = (-1, 1) + (1,) * missing
    return ops.reshape(confidence, shape[: len(term.shape)])


class ClassTerms:
    """Classes: log probabilities, mixed in log space.

    With integer labels only the probability of the true class is carried; a
    one-hot (or soft) label needs all of them.
    """

    def __init__(self, from_logits=False):
        self.from_logits = from_logits

    def labels(self, y, prediction):
        """Labels (batch, ...) of integers, or (batch, ..., classes)."""
        rank, classes = len(prediction.shape), prediction.shape[-1]
        if len(y.shape) == rank and y.shape[-1] == classes and classes > 1:
            return ops.cast(y, prediction.dtype)
        if len(y.shape) == rank and y.shape[-1] == 1:
            y = ops.squeeze(y, axis=-1)
        if len(y.shape) != rank - 1:
            raise ValueError(
                "Expected integer labels of shape (batch,) or (batch, 1), or "
                f"one-hot labels of shape (batch, {classes}), for predictions "
                f"of shape {tuple(prediction.shape)}. Received: y_true of "
                f"shape {tuple(y.shape)}."
            )
        return ops.cast(y, "int32")

    def term(self, y, prediction):
        if self.from_logits:
            log_probability = ops.log_softmax(prediction, axis=-1)
        else:
            log_probability = safe_log(prediction)
        if len(y.shape) == len(prediction.shape):
            return log_probability
        classes = prediction.shape[-1]
        inside = ops.clip(y, 0, classes - 1)
        picked = ops.sum(
            ops.one_hot(inside, classes, dtype=log_probability.dtype)
            * log_probability,
            axis=-1,
            keepdims=True,
        )
        known = ops.expand_dims((y >= 0) & (y < classes), axis=-1)
        return ops.where(known, picked, float("nan"))

    def mix(self, confidence, term, rest):
        return ops.logaddexp(
            safe_log(_like(confidence, term)) + term,
            safe_log(1.0 - _like(confidence, term)) + rest,
        )

    def loss(self, y, term):
        if len(y.shape) == len(term.shape):
            term = y * term
        return _mean_over_positions(-ops.sum(term, axis=-1))


class LabelTerms(ClassTerms):
    """Independent labels: log probability of each label's true value."""

    def labels(self, y, prediction):
        if len(y.shape) == len(prediction.shape) - 1:
            y = ops.expand_dims(y, axis=-1)
        if y.shape[-1] != prediction.shape[-1]:
            raise ValueError(
                "Expected one target per label, shape (batch, "
                f"{prediction.shape[-1]}). Received: y_true of shape "
                f"{tuple(y.shape)}."
            )
        return ops.cast(y, prediction.dtype)

    def term(self, y, prediction):
        if self.from_logits:
            yes = ops.log_sigmoid(prediction)
            no = ops.log_sigmoid(-prediction)
        else:
            yes, no = safe_log(prediction), safe_log(1.0 - prediction)
        return y * yes + (1.0 - y) * no

    def loss(self, y, term):
        return _mean_over_positions(-term)


class ValueTerms:
    """Values, and every base loss of Keras: the predictions are mixed.

    Args:
        loss: A Keras loss object or name that compares `y_true` with a
            prediction.
        head: The `tasks.Head`, or `None` for values. Logits are mixed as
            probabilities, so the base loss must then expect probabilities.
    """

    def __init__(self, loss="mean_squared_error", from_logits=False, task=None):
        self.function = keras.losses.get(loss)
        if isinstance(self.function, keras.losses.Loss):
            config = {**self.function.get_config(), "reduction": "none"}
            self.function = type(self.function).from_config(config)
        self.from_logits = from_logits
        self.task = task

    def labels(self, y, prediction):
        if len(y.shape) == len(prediction.shape) - 1 and (
            prediction.shape[-1] == 1
        ):
            y = ops.expand_dims(y, axis=-1)
        return y

    def term(self, y, prediction):
        if not self.from_logits:
            return prediction
        if self.task == "multilabel":
            return ops.sigmoid(prediction)
        return ops.softmax(prediction, axis=-1)

    def mix(self, confidence, term, rest):
        confidence = _like(confidence, term)
        return confidence * term + (1.0 - confidence) * rest

    def loss(self, y, term):
        return _mean_over_positions(self.function(y, term))


def terms_for(task, from_logits=False, loss=None):
    """The terms of a task.

    Args:
        task: `"classification"`, `"multilabel"` or `"regression"`.
        from_logits: Whether predictions are logits.
        loss: A Keras loss to use in place of the task's own (cross-entropy,
            binary cross-entropy, mean squared error).

    Returns:
        An object with `labels`, `term`, `mix` and `loss`.
    """
    if loss is not None:
        return ValueTerms(loss, from_logits, task)
    if task == "regression":
        return ValueTerms()
    if task == "multilabel":
        return LabelTerms(from_logits)
    return ClassTerms(from_logits)
