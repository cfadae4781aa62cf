"""Exits that add up: each corrects the ones before it."""

import keras
from keras import ops

from keras_earlyexit.objectives.base import Objective, mean, register
from keras_earlyexit.objectives.terms import safe_log
from keras_earlyexit.refining import Refiner


@keras.saving.register_keras_serializable(package="keras_earlyexit")
class Boosting(Refiner):
    """F_i = z_i + r F_{i-1} on logits z; the prediction is that of F_i.

    Probabilities enter as their logarithms, which differ from logits by a
    constant that the softmax takes out again. No gradient flows into F_{i-1}.

    Args:
        rate: r, the weight of the exits before.
        from_logits: Whether predictions are logits.
    """

    def __init__(self, rate=1.0, from_logits=False, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate
        self.from_logits = from_logits

    def call(self, prediction, confidence=None, memory=None):
        logits = prediction if self.from_logits else safe_log(prediction)
        if memory is not None:
            logits = logits + self.rate * ops.stop_gradient(memory)
        answer = logits if self.from_logits else ops.softmax(logits, axis=-1)
        if confidence is None:
            return {"prediction": answer}
        return {
            "prediction": answer,
            "confidence": ops.copy(confidence),
            "memory": logits,
        }

    def get_config(self):
        return {
            **super().get_config(),
            "rate": self.rate,
            "from_logits": self.from_logits,
        }


@register
class Boosted(Objective):
    """sum_i CE(F_i), F_i = z_i + r stop_gradient(F_{i-1}).

    Every exit answers with the sum of its own logits and those before, in
    training and afterwards: `compile` puts a `Boosting` behind each of them.

    Args:
        rate: r, 1 in most of the authors' runs, 0.5 for CIFAR-100 and
            ImageNet.
        **options: As in `Objective`.

    Reference:
        Yu et al., Boosted Dynamic Neural Networks, AAAI 2023,
        arXiv 2211.16726.
    """

    name = "boosted"
    counts_cost = False
    part_names = ("prediction_loss",)

    def __init__(self, cost_weight=1.0, rate=1.0, **options):
        super().__init__(cost_weight, **options)
        self.rate = rate

    def refiners(self, model):
        check_vector_classes(model, self.name)
        return [
            Boosting(self.rate, model.head.from_logits, name=f"{name}_boosting")
            for name in model.exit_names
        ]

    def answers(self, predictions):
        """The predictions of F_i, from those of the exit blocks."""
        found, memory = [], None
        boosting = Boosting(self.rate, self.from_logits)
        for prediction in predictions:
            made = boosting.call(prediction, prediction, memory)
            found.append(made["prediction"])
            memory = made["memory"]
        return found

    def parts(self, y, predictions, confidences, costs, weight, exit_tags):
        losses = self.losses(y, predictions)
        return {"prediction_loss": sum(mean(loss, weight) for loss in losses)}

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


def check_vector_classes(model, name):
    """Refuses models whose exits do not answer with one class per sample."""
    shape = model.net.output["final"].shape
    if model.head.task != "classification" or len(shape) != 2:
        raise ValueError(
            f"Expected a classifier with answers (batch, classes) for "
            f"objective {name!r}, whose exits add up. Received: a "
            f"{model.head.task} model with answers of shape {tuple(shape)}."
        )
