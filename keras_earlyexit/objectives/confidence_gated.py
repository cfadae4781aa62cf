"""Deeper exits learn from the samples that earlier exits do not settle."""

from keras import ops

from keras_earlyexit.objectives.base import Objective, mean, register

GATES = ("hard", "soft")


@register
class ConfidenceGated(Objective):
    """sum_i mean(w_i CE_i), w_0 = 1 and w_i = w_{i-1} (1 - s_{i-1}).

    s_i says how far exit i settles a sample: with `gate="soft"` the
    probability p_y that it gives the right answer, with `gate="hard"` 1 where
    p_y is above `threshold`, else 0. No gradient flows through s. This is the
    idea of the paper's abstract, which is what was at hand, not its code.

    Args:
        gate: `"hard"` or `"soft"`.
        threshold: Probability above which the hard gate takes a sample for
            settled.
        floor: Smallest weight of an exit, so that deep exits never starve.
        **options: As in `Objective`.

    Reference:
        Confidence-gated training for efficient early-exit neural networks,
        arXiv 2509.17885.
    """

    name = "confidence_gated"
    counts_cost = False
    part_names = ("prediction_loss",)

    def __init__(
        self,
        cost_weight=1.0,
        gate="soft",
        threshold=0.9,
        floor=0.1,
        **options,
    ):
        super().__init__(cost_weight, **options)
        if gate not in GATES:
            raise ValueError(
                f"Expected `gate` to be 'hard' or 'soft'. Received: {gate!r}."
            )
        if not 0 <= threshold <= 1 or not 0 <= floor <= 1:
            raise ValueError(
                "Expected `threshold` and `floor` in [0, 1]. Received: "
                f"threshold={threshold!r}, floor={floor!r}."
            )
        self.gate = gate
        self.settled_above = threshold
        self.floor = floor

    def parts(self, y, predictions, confidences, costs, weight, exit_tags):
        losses = self.losses(y, predictions)
        left = ops.ones_like(losses[0])
        total = 0.0
        for loss in losses:
            total += mean(ops.maximum(left, self.floor) * loss, weight)
            # exp(-CE) is the probability of the right answer.
            settled = ops.exp(-ops.stop_gradient(loss))
            if self.gate == "hard":
                settled = ops.cast(settled > self.settled_above, settled.dtype)
            left = left * (1.0 - settled)
        return {"prediction_loss": total}

    def get_config(self):
        return {
            **super().get_config(),
            "gate": self.gate,
            "threshold": self.settled_above,
            "floor": self.floor,
        }
