"""JEI-DNN: the gates that decide and the exits that answer, learned together.

Notation: g_l is the gate of early exit l, P_l the probability of leaving at l
(`policies.confidence.exit_distribution`), CE_l the base loss, c_l the relative
cost, and l*(x) = argmin_l [ CE_l + cost_weight c_l ], l = 0 ... E.

Reference:
    Regol, Chataoui and Coates, Jointly-Learned Exit and Inference for a
    Dynamic Neural Network, ICLR 2024, arXiv 2310.09163.
"""

import keras
from keras import layers, ops

from keras_earlyexit.objectives.base import Objective, mean, register
from keras_earlyexit.objectives.jei_phases import GATES, JointPhases
from keras_earlyexit.objectives.state import State
from keras_earlyexit.objectives.terms import safe_log
from keras_earlyexit.policies.confidence import exit_distribution
from keras_earlyexit.refining import Refiner
from keras_earlyexit.regimes import groups_of
from keras_earlyexit.tasks import Head

WEIGHTINGS = ("paper", "code")


@keras.saving.register_keras_serializable(package="keras_earlyexit")
class UncertaintyGate(Refiner):
    """A gate in place of the confidence: sigmoid of 4 weights and a bias.

    It reads how uncertain an exit's probabilities are (`uncertainties`); no
    gradient flows back into them.

    Args:
        head: The model's `tasks.Head`, or its config.
    """

    replaces_confidence = True

    def __init__(self, head, **kwargs):
        super().__init__(**kwargs)
        self.head = head if isinstance(head, Head) else Head(**head)
        self.gate = layers.Dense(
            1, activation="sigmoid", dtype=self.dtype_policy, name="gate"
        )

    def build(self, prediction_shape, confidence_shape=None):
        self.gate.build((None, 4))
        self.built = True

    def call(self, prediction, confidence=None, memory=None):
        probabilities = self.head.probabilities(prediction)
        features = uncertainties(ops.stop_gradient(probabilities))
        return {"prediction": prediction, "confidence": self.gate(features)}

    def get_config(self):
        return {**super().get_config(), "head": self.head.get_config()}


def uncertainties(probabilities):
    """The four features that a gate reads.

    Largest probability, entropy, lead of the largest over the next, and the
    entropy of the sharpened distribution p_k^2 / sum_j p_j^2; means over
    positions where there are any.

    Args:
        probabilities: Tensor (batch, ..., classes).

    Returns:
        Tensor (batch, 4), in nats where it is an entropy.
    """
    p = probabilities
    ranked = ops.sort(p, axis=-1)
    sharp = p * p / ops.sum(p * p, axis=-1, keepdims=True)
    found = ops.stack(
        [
            ranked[..., -1],
            -ops.sum(p * safe_log(p), axis=-1),
            ranked[..., -1] - ranked[..., -2],
            -ops.sum(sharp * safe_log(sharp), axis=-1),
        ],
        axis=-1,
    )
    axes = tuple(range(1, len(found.shape) - 1))
    return ops.mean(found, axis=axes) if axes else found


@register
class JEI(Objective):
    """Gates and exits, learned in turns.

    - prediction_loss: mean over batch and exits of CE_l; with
      `weighting="paper"` of P_l CE_l, rescaled for each sample by
      sum_l CE_l / sum_l P_l CE_l (a constant to the gradient).
    - confidence_loss: binary cross-entropy of g_l against the target
      [l >= l*(x)], positives weighted by min(5, (N - n_l) / max(n_l, .1)) with
      n_l of N validation samples having l* = l; mean over batch and gates.
    - cost_loss: mean of sum_l P_l c_l, to look at; cost is counted in l*.

    Exits get no gradient from the gates, gates none from the prediction loss.
    `fit` begins with a warm-up: all exits learn, earlier ones with more weight
    (CE_E + sum_l (E + 1 - l) CE_l), each until its accuracy on the validation
    data stops rising. Then gates and exits take turns, gates first in every
    epoch. The backbone is frozen unless `compile` is told another `regime`.

    Args:
        cost_weight: The weight of cost, the paper's lambda.
        weighting: `"code"`: the plain mean of CE_l, which the authors'
            published code comes to and their figures were made with.
            `"paper"`: weighted by P_l. Its scale has no limit: where a sample
            leaves at an exit that is sure of it, the others' losses are all
            laid on that exit, and exits that were good can be lost.
        warm_up_epochs: Epochs of warm-up; `None`: 40 % of those that `fit` is
            asked for, at most 6.
        turn_batches: Batches after which gates and exits change turns; `None`:
            200, or half an epoch where that is less.
        gate_rate: How much faster than the exits the gates learn, if they have
            the same optimizer: a factor of its learning rate. Gates have five
            parameters each, and half of the steps.
        patience: Epochs of warm-up without a better accuracy after which an
            exit is left alone, with its best weights.
        **options: As in `Objective`.

    Reference:
        Regol, Chataoui and Coates, arXiv 2310.09163.
    """

    name = "jei"
    policy = "joint_gate"
    trains_confidence = True
    regime = "disjoint"
    part_names = ("prediction_loss", "cost_loss", "confidence_loss")

    def __init__(
        self,
        cost_weight=1.0,
        weighting="code",
        warm_up_epochs=None,
        turn_batches=None,
        gate_rate=10.0,
        patience=2,
        **options,
    ):
        super().__init__(cost_weight, **options)
        if weighting not in WEIGHTINGS:
            raise ValueError(
                "Expected `weighting` to be 'paper' or 'code'. Received: "
                f"weighting={weighting!r}."
            )
        for name, value, least in (
            ("warm_up_epochs", warm_up_epochs, 0),
            ("turn_batches", turn_batches, 1),
            ("patience", patience, 1),
        ):
            if value is not None and not value >= least:
                raise ValueError(
                    f"Expected `{name}` to be {least} or more. Received: "
                    f"{name}={value!r}."
                )
        self.weighting = weighting
        self.warm_up_epochs = warm_up_epochs
        self.turn_batches = turn_batches
        self.rates = {GATES: gate_rate}
        self.patience = patience
        self.warming_up = False
        self.epochs_done = 0
        self.state = None

    @property
    def states(self):
        return [] if self.state is None else [self.state]

    def refiners(self, model):
        if model.head.task == "regression":
            raise ValueError(
                "Expected a classifier for objective 'jei', whose gates read "
                "class probabilities. Received: a model that answers with "
                f"{model.head.units} values."
            )
        return [
            *(
                UncertaintyGate(model.head, name=f"{name}_gate")
                for name in model.exit_names[:-1]
            ),
            None,
        ]

    def groups(self, model):
        groups = groups_of(model)
        gates = [
            variable
            for refiner in model.exit_graph.refiners[:-1]
            for variable in refiner.trainable_variables
        ]
        own = {id(variable) for variable in gates}
        for name, variables in groups.items():
            groups[name] = [v for v in variables if id(v) not in own]
        # Last: the learning rate of the optimizer is that of the first group.
        return {**groups, GATES: gates}

    def attach(self, model):
        early = len(model.exit_names) - 1
        self.state = State(
            "jei",
            positive_weights=[1.0] * early,
            best_exits=[0.0] * (early + 1),
        )

    def callbacks(self, model):
        return [JointPhases(self)]

    def parts(self, y, predictions, confidences, costs, weight, exit_tags):
        gates = confidences[: len(predictions) - 1]
        leaving, _ = exit_distribution(gates)
        leaving = ops.stop_gradient(ops.concatenate(leaving, axis=-1))
        losses = ops.stack(self.losses(y, predictions), axis=-1)
        costs = ops.stack(costs)
        best = self.best_exits(losses, costs)
        if self.state is not None:
            taken = ops.one_hot(best, len(predictions), dtype="float32")
            self.state.best_exits.assign_add(ops.sum(taken, axis=0))
        return {
            "prediction_loss": mean(self._of_exits(losses, leaving), weight),
            "cost_loss": mean(ops.sum(leaving * costs, axis=-1), weight),
            "confidence_loss": mean(self._of_gates(gates, best), weight),
        }

    def best_exits(self, losses, costs):
        """l*: the exit with the least loss and cost, the first of equals.

        Args:
            losses: Tensor (batch, E + 1).
            costs: Tensor (E + 1,).

        Returns:
            Integer tensor (batch,).
        """
        total = ops.stop_gradient(losses) + self.cost_weight * costs
        return ops.argmin(total, axis=-1)

    def _of_exits(self, losses, leaving):
        """Per sample, (batch,): what the exits are trained by."""
        num_exits = losses.shape[-1]
        if self.warming_up:
            weights = [num_exits - i for i in range(num_exits - 1)] + [1]
            return ops.sum(ops.cast(weights, losses.dtype) * losses, axis=-1)
        everywhere = ops.sum(losses, axis=-1)
        if self.weighting == "code":
            return everywhere / num_exits
        expected = ops.sum(leaving * losses, axis=-1)
        ratio = ops.stop_gradient(everywhere / ops.maximum(expected, 1e-12))
        return ratio * expected / num_exits

    def _of_gates(self, gates, best):
        """Per sample, (batch,): what the gates are trained by."""
        gates = ops.concatenate(gates, axis=-1)
        early = gates.shape[-1]
        right = ops.cast(
            ops.arange(early) >= ops.expand_dims(best, -1), gates.dtype
        )
        positive = 1.0
        if self.state is not None:
            positive = ops.cast(self.state.positive_weights, gates.dtype)
        entropy = positive * right * safe_log(gates)
        entropy += (1.0 - right) * safe_log(1.0 - gates)
        return -ops.mean(entropy, axis=-1)

    def get_config(self):
        return {
            **super().get_config(),
            "weighting": self.weighting,
            "warm_up_epochs": self.warm_up_epochs,
            "turn_batches": self.turn_batches,
            "gate_rate": self.rates[GATES],
            "patience": self.patience,
        }
