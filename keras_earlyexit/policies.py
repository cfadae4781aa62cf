"""Policies: how an exit's score is computed, and the thresholds it meets.

A sample leaves at the first exit whose score is strictly above that exit's
threshold. The score is computed inside the stage, from the exit's
probabilities, its confidence and, for policies that look back, a `carry` that
the earlier exits left; thresholds stay outside, so changing one rebuilds
nothing.
"""

import difflib

import keras
import numpy as np
from keras import ops

from keras_earlyexit.tasks import Head

PACKAGE = "keras_earlyexit"
_REGISTRY = {}


class Policy:
    """How a score is computed. Subclasses define `score`.

    Args:
        threshold: A float for all early exits, or a sequence with one value
            per early exit. `None` takes the policy's default. Infinite values
            are allowed: `inf` lets nobody leave.

    Attributes:
        name: The policy's name, as `ee.policies.get` takes it.
        uses_confidence: Whether the score reads the confidence branch.
        uses_probabilities: Whether the score reads class probabilities.
    """

    name = None
    default_threshold = 0.9
    uses_confidence = False
    uses_probabilities = False

    def __init__(self, threshold=None):
        if threshold is None:
            threshold = self.default_threshold
        self.threshold = threshold

    @property
    def threshold(self):
        """The threshold: a float, or a tuple with one per early exit."""
        return self._threshold

    @threshold.setter
    def threshold(self, value):
        array = np.asarray(value)
        if array.ndim > 1 or array.dtype.kind not in "fiu" or not array.size:
            raise ValueError(
                "Expected `threshold` to be a number, or a sequence of one "
                f"number per early exit. Received: {value!r} (of type "
                f"{type(value).__name__})."
            )
        if np.isnan(array).any():
            raise ValueError(
                "Expected a threshold that is not NaN (inf lets nobody "
                f"leave). Received: {value!r}."
            )
        if array.ndim:
            self._threshold = tuple(float(item) for item in array)
        else:
            self._threshold = float(array)

    def thresholds(self, num_early_exits):
        """The thresholds of all early exits, as a float32 array.

        Args:
            num_early_exits: Number of early exits E.

        Returns:
            Array (E,).

        Raises:
            ValueError: If there is one threshold per exit, but not E of them.
        """
        if isinstance(self.threshold, float):
            return np.full(num_early_exits, self.threshold, "float32")
        if len(self.threshold) != num_early_exits:
            raise ValueError(
                f"Expected one threshold, or {num_early_exits}, one per early "
                f"exit. Received: {len(self.threshold)} thresholds "
                f"{self.threshold} in policy {self.name!r}."
            )
        return np.asarray(self.threshold, "float32")

    def carry_shape(self, num_classes):
        """Shape, without the batch, of what is handed on; `None`: nothing."""
        return None

    def score(self, probabilities, confidence, carry, exit_index):
        """The score of one exit.

        Args:
            probabilities: Tensor (batch, ..., classes) that sums to 1 over the
                last axis, or the values of a regression head.
            confidence: Tensor (batch, 1).
            carry: What the exit before returned, or `None`.
            exit_index: Which early exit this is, from 0 on.

        Returns:
            `(score, carry)`: a tensor (batch,) and what the next exit gets.
        """
        raise TypeError(f"{type(self).__name__} does not define `score`.")

    def get_config(self):
        return {"threshold": self.threshold}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __repr__(self):
        return f"{type(self).__name__}(threshold={self.threshold})"


def _register(cls):
    _REGISTRY[cls.name] = cls
    return keras.saving.register_keras_serializable(package=PACKAGE)(cls)


def mean_over_positions(score):
    """The mean of a score over everything but the batch: (batch,)."""
    axes = tuple(range(1, len(score.shape)))
    return ops.mean(score, axis=axes) if axes else score


@_register
class Learned(Policy):
    """The confidence branch's own output h is the score.

    Reference:
        Demir and Akbas, Early-exit Convolutional Neural Networks,
        arXiv 2409.05336.
    """

    name = "learned"
    default_threshold = 0.5
    uses_confidence = True

    def score(self, probabilities, confidence, carry, exit_index):
        return confidence[:, 0], carry


@_register
class MaxProbability(Policy):
    """The largest class probability; its mean where there are positions."""

    name = "max_probability"
    uses_probabilities = True

    def score(self, probabilities, confidence, carry, exit_index):
        return mean_over_positions(ops.max(probabilities, axis=-1)), carry


@keras.saving.register_keras_serializable(package=PACKAGE)
class Score(keras.layers.Layer):
    """The layer that computes a policy's score at the end of a stage.

    Args:
        policy: A `Policy`.
        head: The model's `tasks.Head`.
        exit_index: Which early exit, from 0 on.
    """

    def __init__(self, policy, head, exit_index, **kwargs):
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.policy = policy
        self.head = head
        self.exit_index = exit_index

    def call(self, prediction, confidence, carry=None):
        score, carry = score_of(
            self.policy,
            self.head,
            prediction,
            confidence,
            carry,
            self.exit_index,
        )
        return score if carry is None else (score, carry)

    def get_config(self):
        return {
            **super().get_config(),
            "policy": keras.saving.serialize_keras_object(self.policy),
            "head": self.head.get_config(),
            "exit_index": self.exit_index,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["policy"] = keras.saving.deserialize_keras_object(
            config["policy"]
        )
        config["head"] = Head(**config["head"])
        return cls(**config)


def score_of(policy, head, prediction, confidence, carry, exit_index):
    """The score of a prediction in the head's own form."""
    if policy.uses_probabilities:
        prediction = head.probabilities(prediction)
    return policy.score(prediction, confidence, carry, exit_index)


def get(identifier, **options):
    """Finds a policy.

    Args:
        identifier: A name (`"learned"`, `"max_probability"`), a `Policy`, or a
            config as `keras.saving.serialize_keras_object` writes it.
        **options: Passed to the policy, such as `threshold=`.

    Returns:
        A `Policy`.

    Raises:
        ValueError: For a name that does not exist.
        TypeError: If `identifier` is none of these.

    Example:

    ```python
    policy = ee.policies.get("max_probability", threshold=0.8)
    ```
    """
    if isinstance(identifier, Policy):
        if options:
            raise ValueError(
                "Expected options only with a policy's name. Received: "
                f"{identifier!r} and {options!r}."
            )
        return identifier
    if isinstance(identifier, dict):
        return keras.saving.deserialize_keras_object(identifier)
    if not isinstance(identifier, str):
        raise TypeError(
            f"Expected a policy's name, a Policy or its config. Received: "
            f"{identifier!r} (of type {type(identifier).__name__})."
        )
    if identifier not in _REGISTRY:
        close = difflib.get_close_matches(identifier, _REGISTRY, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"Unknown policy {identifier!r}. Expected one of "
            f"{', '.join(sorted(_REGISTRY))}.{hint}"
        )
    return _REGISTRY[identifier](**options)
