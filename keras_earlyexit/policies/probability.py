"""Policies that read how sure an exit's probabilities are."""

import math

from keras import ops

from keras_earlyexit.policies.base import Policy, register

_TINY = 1e-30


class ProbabilityPolicy(Policy):
    """A score from each position's probabilities. Subclasses define `sure`.

    Heads that answer at many positions (pixels, tokens, labels) have one value
    for each; `reduce` makes one number of them.

    Args:
        threshold: As in `Policy`, for scores in [0, 1].
        reduce: `"mean"` of all positions, `"min"`, or a quantile in (0, 1):
            with 0.1, nine positions in ten are at least as sure.
    """

    uses_probabilities = True

    def __init__(self, threshold=None, reduce="mean"):
        super().__init__(threshold)
        self.reduce = _check_reduce(reduce)

    def sure(self, probabilities):
        """How sure each position is, in [0, 1]: (batch, ...)."""
        raise TypeError(f"{type(self).__name__} does not define `sure`.")

    def score(self, probabilities, confidence, carry, exit_index):
        return over_positions(self.sure(probabilities), self.reduce), carry

    def get_config(self):
        return {**super().get_config(), "reduce": self.reduce}


@register
class MaxProbability(ProbabilityPolicy):
    """max_k p_k, the probability of the likeliest class.

    Reference:
        Kaya, Hong and Dumitras, Shallow-Deep Networks, ICML 2019.
    """

    name = "max_probability"

    def sure(self, probabilities):
        return ops.max(probabilities, axis=-1)


@register
class Entropy(ProbabilityPolicy):
    """1 + sum_k p_k ln p_k / ln K: 1 for one class, 0 for all alike.

    Reference:
        Teerapittayanon, McDanel and Kung, BranchyNet, ICPR 2016.
    """

    name = "entropy"

    def sure(self, probabilities):
        logarithm = ops.log(ops.maximum(probabilities, _TINY))
        entropy = -ops.sum(probabilities * logarithm, axis=-1)
        return 1.0 - entropy / math.log(max(probabilities.shape[-1], 2))


@register
class Margin(ProbabilityPolicy):
    """p_(1) - p_(2), the lead of the likeliest class over the next."""

    name = "margin"

    def sure(self, probabilities):
        ranked = ops.sort(probabilities, axis=-1)
        return ranked[..., -1] - ranked[..., -2]


def over_positions(values, reduce):
    """One number per sample of values (batch, ...): (batch,)."""
    if len(values.shape) == 1:
        return values
    values = ops.reshape(values, (ops.shape(values)[0], -1))
    if reduce == "mean":
        return ops.mean(values, axis=-1)
    if reduce == "min":
        return ops.min(values, axis=-1)
    return ops.quantile(values, reduce, axis=-1)


def _check_reduce(reduce):
    if reduce in ("mean", "min"):
        return reduce
    if isinstance(reduce, (int, float)) and 0 < reduce < 1:
        return float(reduce)
    raise ValueError(
        "Expected `reduce` to be 'mean', 'min' or a quantile in (0, 1). "
        f"Received: reduce={reduce!r} (of type {type(reduce).__name__})."
    )
