"""All exits learn together: weighted sums of their losses.

CE_i is the base loss of exit i, i = 0 ... E, the last one `final`.
"""

import math

import keras
from keras import ops

from keras_earlyexit import exit_graph
from keras_earlyexit.objectives.base import Objective, mean, register
from keras_earlyexit.objectives.distillation import check_teacher, divergence
from keras_earlyexit.objectives.state import State


class WeightedSum(Objective):
    """sum_i w_i mean(CE_i). Subclasses define `weights`."""

    counts_cost = False
    part_names = ("prediction_loss",)

    def weights(self, costs):
        """E + 1 weights of the exits, from their E + 1 relative costs."""
        raise TypeError(f"{type(self).__name__} does not define `weights`.")

    def parts(self, y, predictions, confidences, costs, weight, exit_tags):
        losses = self.losses(y, predictions)
        weights = self.weights(costs)
        if len(weights) != len(losses):
            raise ValueError(
                f"Expected one weight for each of the {len(losses)} exits. "
                f"Received: {len(weights)} weights {weights}."
            )
        return {
            "prediction_loss": sum(
                share * mean(loss, weight)
                for share, loss in zip(weights, losses, strict=True)
            )
        }


@register
class BranchyNet(WeightedSum):
    """sum_i w_i CE_i, all weights 1 unless given.

    Args:
        weights: E + 1 numbers, `final`'s last; `None`: 1 each.
        **options: As in `Objective`.

    Reference:
        Teerapittayanon, McDanel and Kung, BranchyNet, ICPR 2016,
        arXiv 1709.01686.
    """

    name = "branchynet"

    def __init__(self, cost_weight=1.0, weights=None, **options):
        super().__init__(cost_weight, **options)
        self.given_weights = _numbers("weights", weights)

    def weights(self, costs):
        if self.given_weights is None:
            return [1.0] * len(costs)
        return self.given_weights

    def get_config(self):
        return {**super().get_config(), "weights": self.given_weights}


@register
class PABEE(WeightedSum):
    """sum_j j CE_j / sum_j j, with exits counted from 1.

    Reference:
        Zhou et al., BERT Loses Patience, NeurIPS 2020, arXiv 2006.04152.
    """

    name = "pabee"

    def weights(self, costs):
        total = len(costs) * (len(costs) + 1) / 2
        return [(j + 1) / total for j in range(len(costs))]


@register
class SDN(WeightedSum):
    """sum_i w_i CE_i + CE_E, where w_i rises with the epochs.

    w_i(epoch) = min(w_i^max, 0.01 + epoch w_i^max / epochs). Exits that see
    little of the network weigh less: w_i^max is the relative cost of the exit
    (at most 1), as in the paper, whose exits sit at 15 to 90 % of the cost.
    Outside of `fit` the weights are those of its end.

    Args:
        max_weights: E numbers w_i^max; `None`: the exits' relative costs.
        **options: As in `Objective`.

    Reference:
        Kaya, Hong and Dumitras, Shallow-Deep Networks: Understanding and
        Mitigating Network Overthinking, ICML 2019, arXiv 1810.07052.
    """

    name = "sdn"

    def __init__(self, cost_weight=1.0, max_weights=None, **options):
        super().__init__(cost_weight, **options)
        self.max_weights = _numbers("max_weights", max_weights)
        self.state = None

    @property
    def states(self):
        return [] if self.state is None else [self.state]

    def attach(self, model):
        self.state = State("sdn", progress=1.0)

    def callbacks(self, model):
        return [_Progress(self.state.progress)]

    def weights(self, costs):
        largest = self.max_weights
        if largest is None:
            largest = [ops.minimum(cost, 1.0) for cost in costs[:-1]]
        progress = 1.0 if self.state is None else self.state.progress
        return [
            *(ops.minimum(w, 0.01 + progress * w) for w in largest),
            1.0,
        ]

    def get_config(self):
        return {**super().get_config(), "max_weights": self.max_weights}


class _Progress(keras.callbacks.Callback):
    """Sets a variable to the share of the epochs that are over."""

    def __init__(self, variable):
        super().__init__()
        self.variable = variable

    def on_epoch_begin(self, epoch, logs=None):
        self.variable.assign(epoch / self.params["epochs"])

    def on_train_end(self, logs=None):
        self.variable.assign(1.0)


@register
class GradientEquilibrium(WeightedSum):
    """sum_i CE_i, with gradients that stay bounded on their way back.

    At the feature of exit i of L (counted from 1) the gradient of the exit is
    scaled by 1 / (L - i + 1) and that of the rest of the network by
    (L - i) / (L - i + 1), so that what reaches the trunk is their mean rather
    than a sum that grows with the number of exits. Answers are unchanged.

    Args:
        distillation: Weight g in (1 - g) CE_i + g T^2 KL(p_E || p_i) of the
            early exits, the authors' inline distillation; 0 leaves it out.
        temperature: T, which softens both distributions.
        **options: As in `Objective`.

    Reference:
        Li et al., Improved Techniques for Training Adaptive Deep Networks,
        ICCV 2019, arXiv 1908.06294.
    """

    name = "gradient_equilibrium"

    def __init__(
        self, cost_weight=1.0, distillation=0.0, temperature=1.0, **options
    ):
        super().__init__(cost_weight, **options)
        check_teacher("distillation", distillation, temperature)
        self.distillation = distillation
        self.temperature = temperature

    def weights(self, costs):
        return [1.0 - self.distillation] * (len(costs) - 1) + [1.0]

    def parts(self, y, predictions, confidences, costs, weight, exit_tags):
        parts = super().parts(
            y, predictions, confidences, costs, weight, exit_tags
        )
        if self.distillation:
            *early, final = predictions
            parts["prediction_loss"] += self.distillation * sum(
                mean(divergence(self, final, prediction), weight)
                for prediction in early
            )
        return parts

    def prepare(self, net):
        exits = exit_graph.read(net)
        total = len(exits.names)

        def at_exit(index, feature):
            here = 1.0 / (total - index)
            return (
                GradientScale(here)(feature),
                GradientScale(1.0 - here)(feature),
            )

        return exit_graph.network(exits, at_exit=at_exit)

    def get_config(self):
        return {
            **super().get_config(),
            "distillation": self.distillation,
            "temperature": self.temperature,
        }


class GradientScale(keras.layers.Layer):
    """The identity, whose gradient is scaled.

    Args:
        scale: What the gradient is multiplied by.
    """

    def __init__(self, scale, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale
        self.supports_masking = True

    def call(self, feature):
        scaled = self.scale * feature
        return scaled + ops.stop_gradient(feature - scaled)

    def compute_output_shape(self, shape):
        return shape


def _numbers(name, values):
    """A list of weights of exits, checked; `None` stays."""
    if values is None:
        return None
    found = [float(value) for value in values]
    if not all(0.0 <= value < math.inf for value in found):
        raise ValueError(
            f"Expected `{name}` to be numbers of 0 or more. Received: {found}."
        )
    return found
