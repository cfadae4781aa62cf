"""The EENets objectives: a loss that counts the cost of inference.

Notation: y_i is the prediction of exit i, h_i its confidence, c_i its relative
cost, i = 0 ... E with E for `final`, and NLL the base loss. The mixture of the
answers from exit i on, and its expected cost, are

    Y_E = y_E,  C_E = c_E,
    Y_i = h_i y_i + (1 - h_i) Y_{i+1},   C_i = h_i c_i + (1 - h_i) C_{i+1}.

Reference:
    Demir and Akbas, Early-exit Convolutional Neural Networks,
    arXiv 2409.05336.
"""

from keras import ops

from keras_earlyexit.objectives.base import Objective, as_float, mean, register
from keras_earlyexit.objectives.exit_tags import ExitTags
from keras_earlyexit.objectives.terms import safe_log


def mixtures(terms, confidences, costs, mix):
    """The recursion: mixtures and expected costs from every exit on.

    Args:
        terms: E + 1 terms of the exits' predictions.
        confidences: E tensors (batch, 1) at least.
        costs: E + 1 scalar tensors.
        mix: The task's `mix`.

    Returns:
        Two lists of E + 1: Y_i as terms, and C_i as tensors (batch,) or, for
        the last, a scalar.
    """
    mixed, expected = [terms[-1]], [costs[-1]]
    for i in reversed(range(len(terms) - 1)):
        confidence = confidences[i][:, 0]
        mixed.insert(0, mix(confidences[i], terms[i], mixed[0]))
        expected.insert(
            0, confidence * costs[i] + (1.0 - confidence) * expected[0]
        )
    return mixed, expected


class EENetObjective(Objective):
    """What the EENets objectives share: the `learned` policy."""

    policy = "learned"
    trains_confidence = True

    def _mixtures(self, y, predictions, confidences, costs):
        terms = [self.terms.term(y, prediction) for prediction in predictions]
        mixed, expected = mixtures(terms, confidences, costs, self.terms.mix)
        return [self.terms.loss(y, term) for term in mixed], expected


@register
class EENetV0(EENetObjective):
    """sum_i NLL(y_i): neither cost nor confidence; first of two stages."""

    name = "eenet_v0"
    trains_confidence = False
    counts_cost = False

    def parts(self, y, predictions, confidences, costs, weight, exit_tags):
        losses = self.losses(y, predictions)
        return {"prediction_loss": sum(mean(loss, weight) for loss in losses)}


@register
class EENetV1(EENetObjective):
    """NLL(Y_0) + cost_weight mean(C_0)."""

    name = "eenet_v1"

    def parts(self, y, predictions, confidences, costs, weight, exit_tags):
        losses, expected = self._mixtures(y, predictions, confidences, costs)
        return {
            "prediction_loss": mean(losses[0], weight),
            "cost_loss": mean(expected[0], weight),
        }


@register
class EENetV2(EENetObjective):
    """sum_i [ NLL(Y_i) + cost_weight mean(C_i) ]; the default."""

    name = "eenet_v2"

    def parts(self, y, predictions, confidences, costs, weight, exit_tags):
        losses, expected = self._mixtures(y, predictions, confidences, costs)
        return {
            "prediction_loss": sum(mean(loss, weight) for loss in losses),
            "cost_loss": sum(mean(cost, weight) for cost in expected),
        }


@register
class EENetV3(EENetObjective):
    """sum_i hbar_i (NLL(y_i) + cost_weight c_i).

    hbar_i is the batch mean of h_i over the sum of these means, `final`'s
    confidence included. The policy's threshold is 1 / E.
    """

    name = "eenet_v3"
    uses_final_confidence = True

    def threshold(self, num_early_exits):
        return 1.0 / num_early_exits

    def parts(self, y, predictions, confidences, costs, weight, exit_tags):
        means = [mean(h[:, 0], weight) for h in confidences]
        total = ops.maximum(sum(means), 1e-30)
        losses = self.losses(y, predictions)
        shares = [value / total for value in means]
        return {
            "prediction_loss": sum(
                share * mean(loss, weight)
                for share, loss in zip(shares, losses, strict=True)
            ),
            "cost_loss": sum(
                share * cost for share, cost in zip(shares, costs, strict=True)
            ),
        }


@register
class EENetV4(EENetObjective):
    """Every training sample has an exit tag e(x), refreshed each epoch.

    e(x) = argmin_i [ NLL(y_i) + cost_weight c_i ], the first minimum wins.
    The loss is NLL(y_e) + cost_weight c_e + sum_i mean(w_i BCE(h_i, [e = i])),
    w_i = 1 - rho_i for the samples tagged i and rho_i for the others, with
    rho_i the share of the batch tagged i. Tags start at random; without tags
    (in validation) a sample has the tag that its predictions give it now.
    """

    name = "eenet_v4"
    uses_final_confidence = True
    uses_exit_tags = True
    part_names = ("prediction_loss", "cost_loss", "confidence_loss")

    def parts(self, y, predictions, confidences, costs, weight, exit_tags):
        losses = self.losses(y, predictions)
        if exit_tags is None:
            exit_tags = self._best(losses, costs)
        tagged = ops.one_hot(exit_tags, len(predictions), dtype=losses[0].dtype)
        confidence_loss = 0.0
        for i, confidence in enumerate(confidences):
            here, h = tagged[:, i], confidence[:, 0]
            share = ops.mean(here)
            entropy = here * (1.0 - share) * safe_log(h)
            entropy += (1.0 - here) * share * safe_log(1.0 - h)
            confidence_loss += mean(-entropy, weight)
        chosen = ops.sum(tagged * ops.stack(losses, axis=-1), axis=-1)
        cost = ops.sum(tagged * ops.stack(costs), axis=-1)
        return {
            "prediction_loss": mean(chosen, weight),
            "cost_loss": mean(cost, weight),
            "confidence_loss": confidence_loss,
        }

    def best_exits(self, y_true, predictions, costs):
        """The tag of each sample: the exit with the least loss and cost.

        Args:
            y_true: Labels, as in a call of the objective.
            predictions: E + 1 tensors (batch, classes).
            costs: E + 1 relative costs.

        Returns:
            Integer tensor (batch,).
        """
        predictions = [as_float(p) for p in predictions]
        y = self.terms.labels(ops.convert_to_tensor(y_true), predictions[-1])
        return self._best(self.losses(y, predictions), costs)

    def _best(self, losses, costs):
        totals = [
            loss + self.cost_weight * cost
            for loss, cost in zip(losses, costs, strict=True)
        ]
        return ops.argmin(ops.stack(totals, axis=-1), axis=-1)

    def callbacks(self, model):
        return [ExitTags(self, model)]
