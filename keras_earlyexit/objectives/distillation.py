"""The last exit teaches the earlier ones."""

from keras import ops

from keras_earlyexit.objectives.base import Objective, mean, register
from keras_earlyexit.objectives.terms import safe_log


def divergence(objective, teacher, student):
    """T^2 KL(p_teacher^T || p_student^T) per sample, without a gradient for
    the teacher.

    p^T is the softmax of the logits over T. For labels it is the mean over
    labels of the divergence of each, for values the squared difference.

    Args:
        objective: An `Objective` with a `temperature`.
        teacher, student: Predictions (batch, ..., units).

    Returns:
        Tensor (batch,).
    """
    teacher = ops.stop_gradient(teacher)
    if objective.task == "regression":
        found = ops.square(teacher - student)
    else:
        temperature = objective.temperature
        p, log_p = _soft(objective, teacher, temperature)
        _, log_q = _soft(objective, student, temperature)
        found = temperature**2 * ops.sum(p * (log_p - log_q), axis=-1)
    axes = tuple(range(1, len(found.shape)))
    return ops.mean(found, axis=axes) if axes else found


def _soft(objective, prediction, temperature):
    """Softened probabilities over a last axis, and their logarithms."""
    if objective.task == "multilabel":
        if not objective.from_logits:
            prediction = safe_log(prediction) - safe_log(1.0 - prediction)
        prediction = ops.stack(
            [prediction, ops.zeros_like(prediction)], axis=-1
        )
    elif not objective.from_logits:
        prediction = safe_log(prediction)
    logarithm = ops.log_softmax(prediction / temperature, axis=-1)
    return ops.exp(logarithm), logarithm


def check_teacher(name, weight, temperature):
    """Refuses a weight outside of [0, 1], or a temperature not above 0."""
    if not 0 <= weight <= 1 or not temperature > 0:
        raise ValueError(
            f"Expected `{name}` in [0, 1] and a positive `temperature`. "
            f"Received: {name}={weight!r}, temperature={temperature!r}."
        )


@register
class SelfDistillation(Objective):
    """CE_E + sum_{i<E} [ (1 - a) CE_i + a T^2 KL(p_E^T || p_i^T) ].

    The paper's third term, a distance of each exit's features from the last
    ones (weight 1e-6 in the authors' code), needs exit blocks that bring all
    features to one shape; it is left out.

    Args:
        alpha: The weight a in [0, 1] of the teacher against the label.
        temperature: T, which softens both distributions.
        **options: As in `Objective`.

    Reference:
        Zhang et al., Be Your Own Teacher: Improve the Performance of
        Convolutional Neural Networks via Self Distillation, ICCV 2019,
        arXiv 1905.08094.
    """

    name = "self_distillation"
    counts_cost = False
    part_names = ("prediction_loss",)

    def __init__(self, cost_weight=1.0, alpha=0.1, temperature=3.0, **options):
        super().__init__(cost_weight, **options)
        check_teacher("alpha", alpha, temperature)
        self.alpha = alpha
        self.temperature = temperature

    def parts(self, y, predictions, confidences, costs, weight, exit_tags):
        *losses, final_loss = self.losses(y, predictions)
        *early, final = predictions
        total = mean(final_loss, weight)
        for loss, prediction in zip(losses, early, strict=True):
            taught = divergence(self, final, prediction)
            mixed = (1.0 - self.alpha) * loss + self.alpha * taught
            total += mean(mixed, weight)
        return {"prediction_loss": total}

    def get_config(self):
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "temperature": self.temperature,
        }
