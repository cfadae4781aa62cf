"""Training in two stages: first one objective, then another."""

import keras

from keras_earlyexit.objectives.base import Objective, get, register


@register
class TwoStage(Objective):
    """Trains with `first` for some epochs, then with `objective`.

    The EENets authors train all exits alone first (`eenet_v0`) and let the
    confidences in afterwards; `eenet_v2` from scratch can settle on never
    leaving. The change happens where an epoch begins.

    Args:
        objective: Name, object or config of the second objective.
        first: The same for the first.
        epochs: Number of epochs of the first; a second `fit` goes on where
            the one before ended.
        **options: `cost_weight` of the second objective, and those of
            `Objective`.

    Example:

    ```python
    model.compile("adam", ee.objectives.TwoStage("eenet_v2", epochs=5))
    ```
    """

    name = "two_stage"

    def __init__(
        self, objective="eenet_v2", first="eenet_v0", epochs=25, **options
    ):
        objective = get(objective)
        options.setdefault("cost_weight", objective.cost_weight)
        super().__init__(**options)
        if objective.cost_weight != self.cost_weight:
            objective = type(objective).from_config(
                {**objective.get_config(), "cost_weight": self.cost_weight}
            )
        self.objective = objective
        self.first = get(first)
        self.epochs = epochs
        self.epochs_done = 0
        self.active = self.first if epochs > 0 else self.objective
        self.policy = self.objective.policy
        self.trains_confidence = self.objective.trains_confidence
        self.counts_cost = self.objective.counts_cost
        self.uses_final_confidence = self.objective.uses_final_confidence
        self.uses_exit_tags = self.objective.uses_exit_tags
        self.part_names = self.objective.part_names
        self.rates = self.objective.rates

    def threshold(self, num_early_exits):
        return self.objective.threshold(num_early_exits)

    def parts(self, y, predictions, confidences, costs, weight, exit_tags):
        return self.active.parts(
            y, predictions, confidences, costs, weight, exit_tags
        )

    def refiners(self, model):
        return self.objective.refiners(model)

    def prepare(self, net):
        return self.objective.prepare(net)

    def groups(self, model):
        return self.objective.groups(model)

    def attach(self, model):
        self.objective.attach(model)
        self.states = self.objective.states

    def callbacks(self, model):
        return [
            *self.objective.callbacks(model),
            _ChangeObjective(self),
        ]

    def for_head(self, head, loss=None):
        return TwoStage(
            self.objective.for_head(head, loss),
            self.first.for_head(head, loss),
            self.epochs,
            task=head.task,
            from_logits=head.from_logits,
            loss=loss,
        )

    def get_config(self):
        return {
            **super().get_config(),
            "objective": keras.saving.serialize_keras_object(self.objective),
            "first": keras.saving.serialize_keras_object(self.first),
            "epochs": self.epochs,
        }


class _ChangeObjective(keras.callbacks.Callback):
    """Makes the objective of the epoch the active one, and compiles anew."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def on_epoch_begin(self, epoch, logs=None):
        schedule = self.schedule
        early = max(epoch, schedule.epochs_done) < schedule.epochs
        wanted = schedule.first if early else schedule.objective
        if schedule.active is not wanted:
            schedule.active = wanted
            self.model.use_training_step("two_stage", early)
            self.model.forget_test_function()

    def on_epoch_end(self, epoch, logs=None):
        self.schedule.epochs_done += 1
