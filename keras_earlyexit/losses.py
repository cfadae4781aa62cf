"""The objectives as a Keras loss, for hand-built functional models."""

import keras

from keras_earlyexit import objectives
from keras_earlyexit.exit_graph import FINAL, confidence_name, exit_name


@keras.saving.register_keras_serializable(package="keras_earlyexit")
class EarlyExitLoss(keras.losses.Loss):
    """A training objective over a dict of outputs, as one Keras loss.

    For a functional model whose outputs carry the names `exit_0`,
    `exit_0_confidence`, ..., `final`. Keras hands a loss in a list all
    outputs at once, a bare loss one output at a time, so pass it in a list.

    Args:
        objective: An objective, its name or config (see `ee.objectives.get`).
        costs: E + 1 relative costs, for objectives that count cost.

    Call arguments:
        y_true: Labels (batch,), (batch, 1) or one-hot.
        y_pred: Dict of the model's outputs.
        sample_weight: Tensor (batch,) or `None`.

    Returns:
        A scalar tensor.

    Raises:
        TypeError: If `y_pred` is no dict of exits.
        ValueError: If outputs are missing, or if there is not one cost per
            exit.

    Example:

    ```python
    loss = ee.losses.EarlyExitLoss("eenet_v2", costs=[0.3, 1.0])
    model.compile("adam", loss=[loss])
    ```
    """

    def __init__(self, objective="eenet_v2", costs=None, name=None, **kwargs):
        objective = objectives.get(objective)
        super().__init__(name=name or objective.name, **kwargs)
        self.objective = objective
        self.costs = None if costs is None else [float(c) for c in costs]

    def __call__(self, y_true, y_pred, sample_weight=None):
        if not isinstance(y_pred, dict) or FINAL not in y_pred:
            raise TypeError(
                "Expected all outputs of a model with exits, a dict with "
                f"`exit_0`, ..., `final`. Received: {type(y_pred).__name__}. "
                "Pass the loss in a list: "
                "`model.compile(loss=[EarlyExitLoss(...)])`."
            )
        if isinstance(y_true, (list, tuple)) and len(y_true) == 1:
            (y_true,) = y_true
        names = []
        while exit_name(len(names)) in y_pred:
            names.append(exit_name(len(names)))
        confidences = [confidence_name(name) for name in [*names, FINAL]]
        parts = self.objective(
            y_true,
            [y_pred[name] for name in [*names, FINAL]],
            [y_pred[name] for name in confidences if name in y_pred],
            self._costs(len(names) + 1),
            sample_weight=sample_weight,
        )
        return parts["loss"]

    def _costs(self, num_exits):
        if self.costs is not None:
            return self.costs
        if not self.objective.counts_cost:
            return [0.0] * num_exits
        raise ValueError(
            f"Objective {self.objective.name!r} counts cost. Expected one "
            f"relative cost for each of the {num_exits} exits. Received: "
            "costs=None. Pass `EarlyExitLoss(objective, costs=[...])`."
        )

    def call(self, y_true, y_pred):
        return self(y_true, y_pred)

    def get_config(self):
        return {
            **super().get_config(),
            "objective": keras.saving.serialize_keras_object(self.objective),
            "costs": self.costs,
        }
