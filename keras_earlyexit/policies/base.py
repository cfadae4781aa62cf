"""What every policy has: thresholds, a score, and where it is found."""

import numpy as np

from keras_earlyexit.registry import Registry


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
        takes_values: Whether it works for regression heads, which have values
            in place of class probabilities.
    """

    name = None
    default_threshold = 0.9
    uses_confidence = False
    uses_probabilities = False
    takes_values = False

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

    def check(self, head, num_early_exits):
        """Refuses a model that this policy cannot score.

        Args:
            head: The model's `tasks.Head`.
            num_early_exits: Number of early exits E.

        Raises:
            ValueError: If the policy does not fit, or if there are not one or
                E thresholds.
        """
        self.thresholds(num_early_exits)
        values = head.task == "regression" and not self.takes_values
        if values and self.uses_probabilities:
            raise ValueError(
                "Expected a policy that needs no class probabilities, for a "
                f"model that answers with values. Received: {self!r}. Use "
                "'learned', or 'patience' with a tolerance."
            )

    def carry_shape(self, shape):
        """Shape, without the batch, of what is handed on; `None`: nothing.

        Args:
            shape: Shape, without the batch, of `probabilities` in `score`.
        """
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
        options = ", ".join(f"{k}={v}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({options})"


_registry = Registry("policy", Policy)
register = _registry.register


def score_of(policy, head, prediction, confidence, carry, exit_index):
    """The score of a prediction in the head's own form."""
    values = head.task == "regression" and policy.takes_values
    if policy.uses_probabilities and not values:
        prediction = head.probabilities(prediction)
    return policy.score(prediction, confidence, carry, exit_index)


def carry_shape_of(policy, head, shape):
    """Shape, without the batch, of what a policy carries; `None`: nothing.

    Args:
        policy: A `Policy`.
        head: The model's `tasks.Head`.
        shape: Shape, without the batch, of a prediction in the head's form.
    """
    shape = tuple(shape)
    if policy.uses_probabilities and head.task == "multilabel":
        shape = (*shape, 2)
    return policy.carry_shape(shape)


def get(identifier, **options):
    """Finds a policy.

    Args:
        identifier: A name (`"learned"`, `"max_probability"`, `"entropy"`,
            `"margin"`, `"patience"`, `"joint_gate"`), a `Policy`, or a config
            as `keras.saving.serialize_keras_object` writes it.
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
    return _registry.get(identifier, **options)
