"""Patience: leave when several exits in a row answer alike."""

from keras import ops

from keras_earlyexit.policies.base import Policy, register


@register
class Patience(Policy):
    """How many exits in a row have confirmed the answer of the one before.

    The score of exit i is 0 if its answer differs from that of exit i - 1 (and
    at the first exit), else one more than the score there. Values are alike if
    they differ by at most `tolerance`. With several positions, labels or
    values the least patient one counts.

    Args:
        threshold: As in `Policy`; `None` takes `patience - 0.5`.
        patience: Agreements in a row after which a sample leaves, at least 1.
        tolerance: For regression: the difference below which two values are
            alike, in units of the value.

    Reference:
        Zhou et al., BERT Loses Patience: Fast and Robust Inference with Early
        Exit, NeurIPS 2020.
    """

    name = "patience"
    uses_probabilities = True
    takes_values = True

    def __init__(self, threshold=None, patience=1, tolerance=None):
        if not isinstance(patience, int) or patience < 1:
            raise ValueError(
                "Expected `patience` to be an integer of at least 1. "
                f"Received: patience={patience!r} (of type "
                f"{type(patience).__name__})."
            )
        if tolerance is not None and not tolerance >= 0:
            raise ValueError(
                "Expected `tolerance` to be a number of at least 0, or None. "
                f"Received: tolerance={tolerance!r}."
            )
        super().__init__(patience - 0.5 if threshold is None else threshold)
        self.patience = patience
        self.tolerance = tolerance

    def check(self, head, num_early_exits):
        super().check(head, num_early_exits)
        if num_early_exits < 2:
            raise ValueError(
                "Expected at least two early exits for the policy 'patience', "
                "which counts exits that agree: at the first one nobody can "
                f"leave. Received: a model with {num_early_exits}. Add exits, "
                "or choose another policy."
            )
        values = head.task == "regression"
        if values != (self.tolerance is not None):
            raise ValueError(
                "Expected a `tolerance` for models that answer with values, "
                f"and for no others. Received: {self!r} for a {head.task} "
                "model."
            )

    def carry_shape(self, shape):
        # Each position's last answer, and how often it was confirmed.
        return (*(shape if self.tolerance is not None else shape[:-1]), 2)

    def score(self, probabilities, confidence, carry, exit_index):
        if self.tolerance is None:
            # Not argmax, which LiteRT cannot run on every input.
            answer = ops.top_k(probabilities, 1)[1][..., 0]
            answer = ops.cast(answer, probabilities.dtype)
        else:
            answer = probabilities
        if carry is None:
            count = ops.zeros_like(answer)
        else:
            change = ops.abs(answer - carry[..., 0])
            alike = change <= (self.tolerance or 0.0)
            count = ops.where(alike, carry[..., 1] + 1.0, 0.0)
        carry = ops.stack([answer, count], axis=-1)
        axes = tuple(range(1, len(count.shape)))
        return (ops.min(count, axis=axes) if axes else count), carry

    def get_config(self):
        return {
            **super().get_config(),
            "patience": self.patience,
            "tolerance": self.tolerance,
        }
