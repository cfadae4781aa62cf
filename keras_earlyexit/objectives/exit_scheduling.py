"""Scores that say whether an exit is right, and shares that fit a budget."""

import dataclasses
import math

import keras
from keras import layers, ops

from keras_earlyexit.cost import exit_costs
from keras_earlyexit.objectives.base import Objective, mean, register
from keras_earlyexit.objectives.boosted import check_vector_classes
from keras_earlyexit.objectives.terms import safe_log
from keras_earlyexit.refining import Refiner


@keras.saving.register_keras_serializable(package="keras_earlyexit")
class ScheduledScore(Refiner):
    """A score in place of the confidence, and a wish to leave here.

    With f = (max p, 1 + sum p ln p / ln K, scores of earlier exits):
    score g = sigmoid(a.p + b.f + c), wish r = u.p + v.f + w. No gradient flows
    back into p.

    Args:
        units: Number of classes K.
        from_logits: Whether predictions are logits.
    """

    replaces_confidence = True

    def __init__(self, units, from_logits=False, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.from_logits = from_logits
        self.score = layers.Dense(
            1, activation="sigmoid", dtype=self.dtype_policy, name="score"
        )
        self.wish = layers.Dense(1, dtype=self.dtype_policy, name="wish")

    def build(self, prediction_shape, confidence_shape=None, memory_shape=None):
        earlier = memory_shape[-1] // 2 if memory_shape is not None else 0
        width = self.units + 2 + earlier
        self.score.build((None, width))
        self.wish.build((None, width))
        self.built = True

    def call(self, prediction, confidence=None, memory=None):
        p = ops.softmax(prediction) if self.from_logits else prediction
        p = ops.stop_gradient(p)
        entropy = -ops.sum(p * safe_log(p), axis=-1, keepdims=True)
        features = [
            p,
            ops.max(p, axis=-1, keepdims=True),
            1.0 - entropy / math.log(max(self.units, 2)),
        ]
        scores, wishes = [], []
        if memory is not None:
            half = memory.shape[-1] // 2
            scores, wishes = [memory[:, :half]], [memory[:, half:]]
        features = ops.concatenate([*features, *scores], axis=-1)
        score, wish = self.score(features), self.wish(features)
        return {
            "prediction": ops.copy(prediction),
            "confidence": score,
            "memory": ops.concatenate([*scores, score, *wishes, wish], axis=-1),
        }

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "from_logits": self.from_logits,
        }


@keras.saving.register_keras_serializable(package="keras_earlyexit")
class Assignment(Refiner):
    """At `final`: which exit each sample is to be answered at, in training.

    r = softmax of the wishes, 0 for `final`. It adds to the loss
    kl_weight KL(r || s) + budget_weight |sum_i mean(r_i) c_i - B| / B,
    with s the scores to the power beta, normalised (1 for `final`).

    Args:
        costs: E + 1 relative costs c.
        budget: B, the mean relative cost to spend.
        beta: How strongly a high score asks for a share.
        kl_weight, budget_weight: Weights of the two terms.
    """

    def __init__(
        self,
        costs,
        budget,
        beta=1.0,
        kl_weight=1e-3,
        budget_weight=1e-2,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.costs = [float(cost) for cost in costs]
        self.budget = budget
        self.beta = beta
        self.kl_weight = kl_weight
        self.budget_weight = budget_weight

    def build(self, prediction_shape, memory_shape=None):
        self.shares = self.add_weight(
            shape=(len(self.costs),),
            initializer=keras.initializers.Constant(1.0 / len(self.costs)),
            trainable=False,
            name="shares",
        )
        self.built = True

    def call(self, prediction, confidence=None, memory=None, training=None):
        if training:
            early = len(self.costs) - 1
            nothing = ops.zeros_like(memory[:, :1])
            wishes = ops.concatenate([memory[:, early:], nothing], axis=-1)
            assigned = ops.softmax(wishes, axis=-1)
            scores = ops.stop_gradient(memory[:, :early])
            scores = ops.concatenate([scores, nothing + 1.0], axis=-1)
            wanted = ops.power(ops.maximum(scores, 1e-6), self.beta)
            wanted = wanted / ops.sum(wanted, axis=-1, keepdims=True)
            divergence = ops.sum(
                assigned * (safe_log(assigned) - safe_log(wanted)), axis=-1
            )
            shares = ops.mean(assigned, axis=0)
            costs = ops.convert_to_tensor(self.costs, dtype=shares.dtype)
            cost = ops.sum(shares * costs)
            self.add_loss(
                self.kl_weight * ops.mean(divergence)
                + self.budget_weight * ops.abs(cost - self.budget) / self.budget
            )
            shares = ops.stop_gradient(shares)
            self.shares.assign(0.99 * self.shares + 0.01 * shares)
        return {"prediction": ops.copy(prediction)}

    def get_config(self):
        return {
            **super().get_config(),
            "costs": self.costs,
            "budget": self.budget,
            "beta": self.beta,
            "kl_weight": self.kl_weight,
            "budget_weight": self.budget_weight,
        }


@register
class ExitScheduling(Objective):
    """sum_i CE_i, and scores that are trained to say whether exit i is right.

    confidence_loss is the binary cross-entropy of each early exit's score
    against whether its class is right; right and wrong samples of a batch
    weigh alike in total. `Assignment` adds its own two terms to `loss`. The
    exits get no gradient from either, so a trained model may be given to
    `fit` with `regime="disjoint"`.

    `exit_shares(model)` is what the assignment has come to; give it to
    `ee.calibration.calibrate_budget(model, x, shares=...)`, which turns it
    into thresholds on calibration data.

    Args:
        budget: Mean relative cost to spend, in units of the plain model.
        beta, kl_weight, budget_weight: As in `Assignment`.
        **options: As in `Objective`.

    Reference:
        Ilhan et al., Adaptive Deep Neural Network Inference Optimization with
        EENet, WACV 2024, arXiv 2301.07099.
    """

    name = "exit_scheduling"
    policy = "learned"
    trains_confidence = True
    counts_cost = False
    part_names = ("prediction_loss", "confidence_loss")

    def __init__(
        self,
        cost_weight=1.0,
        budget=0.5,
        beta=1.0,
        kl_weight=1e-3,
        budget_weight=1e-2,
        **options,
    ):
        super().__init__(cost_weight, **options)
        if not budget > 0:
            raise ValueError(
                "Expected `budget` to be a mean relative cost above 0. "
                f"Received: budget={budget!r}."
            )
        self.schedule = {
            "budget": budget,
            "beta": beta,
            "kl_weight": kl_weight,
            "budget_weight": budget_weight,
        }

    def refiners(self, model):
        check_vector_classes(model, self.name)
        head, exits = model.head, model.exit_graph
        # Without refiners, whose own cost must not change with themselves.
        exits = dataclasses.replace(exits, refiners=[None] * len(exits.names))
        costs, _ = exit_costs.relative_costs(exits, model.cost)
        if model.measured_cost is not None:
            costs = model.relative_costs
        return [
            *(
                ScheduledScore(
                    head.units, head.from_logits, name=f"{name}_scheduled"
                )
                for name in model.exit_names[:-1]
            ),
            Assignment(costs, **self.schedule, name="final_assignment"),
        ]

    def exit_shares(self, model):
        """Share of the samples that each exit is to answer: array (E + 1,)."""
        shares = model.exit_graph.refiners[-1].shares
        shares = ops.convert_to_numpy(shares).astype("float64")
        return shares / shares.sum()

    def parts(self, y, predictions, confidences, costs, weight, exit_tags):
        losses = self.losses(y, predictions)
        label = y
        if len(y.shape) == len(predictions[0].shape):
            label = ops.argmax(y, axis=-1)
        confidence_loss = 0.0
        for prediction, confidence in zip(
            predictions[:-1], confidences, strict=False
        ):
            answer = ops.argmax(prediction, axis=-1)
            right = ops.cast(
                answer == ops.cast(label, answer.dtype), prediction.dtype
            )
            share = ops.clip(ops.mean(right), 0.05, 0.95)
            score = confidence[:, 0]
            entropy = right / share * safe_log(score)
            entropy += (1.0 - right) / (1.0 - share) * safe_log(1.0 - score)
            confidence_loss += mean(-entropy / 2.0, weight)
        return {
            "prediction_loss": sum(mean(loss, weight) for loss in losses),
            "confidence_loss": confidence_loss,
        }

    def get_config(self):
        return {**super().get_config(), **self.schedule}
