"""The figures that an early-exit model logs: per exit, and routed.

The routed figures say what the answers would be if every sample left where
its policy lets it. They are computed from the same scores as in `predict`.
"""

import keras
import numpy as np
from keras import ops

from keras_earlyexit.exit_graph import FINAL, confidence_name
from keras_earlyexit.objectives.base import as_float
from keras_earlyexit.policies import score_of

DEFAULT_METRICS = {
    "classification": ("accuracy",),
    "multilabel": ("accuracy",),
    "regression": ("mean_absolute_error",),
}


class ExitMetrics:
    """All metrics of an `EarlyExitModel`, made anew by each `compile`.

    Args:
        model: The `EarlyExitModel`.
        objective: Its objective, for the names of the loss's parts.
        metrics: Keras metrics (names, objects or functions) for every exit and
            for the routed answers; `None` takes the task's own.
        weighted_metrics: The same, weighted by `sample_weight`.
    """

    def __init__(self, model, objective, metrics, weighted_metrics):
        if metrics is None:
            metrics = DEFAULT_METRICS[model.head.task]
        self.parts = {
            name: keras.metrics.Mean(name=name) for name in objective.part_names
        }
        kinds = [(kind, False) for kind in _as_list(metrics)]
        kinds += [(kind, True) for kind in _as_list(weighted_metrics)]
        self.per_exit = [
            (name, _make(kind, model.head, name), weighted)
            for name in model.exit_names
            for kind, weighted in kinds
        ]
        self.routed = [
            (_make(kind, model.head, "routed"), weighted)
            for kind, weighted in kinds
        ]
        self.routing = RoutingMetric(model.exit_names, model.relative_costs)

    def of_training(self):
        return [
            *self.parts.values(),
            *(metric for _, metric, _ in self.per_exit),
        ]

    def of_evaluation(self):
        return [*self.of_training(), *self.of_routing()]

    def update_exits(self, y, outputs, sample_weight):
        for name, metric, weighted in self.per_exit:
            weight = sample_weight if weighted else None
            metric.update_state(y, outputs[name], sample_weight=weight)

    def of_routing(self):
        return [*(metric for metric, _ in self.routed), self.routing]

    def update_from_outputs(self, y, outputs, sample_weight, policy, head):
        """Updates the routed metrics from the answers of all exits."""
        leaves_at = self.routing.route(outputs, policy, head)
        prediction = self.routing.answers(outputs, leaves_at)
        self.update_routed(y, prediction, leaves_at, sample_weight)

    def update_routed(self, y, prediction, leaves_at, sample_weight):
        self.routing.update_state(leaves_at)
        for metric, weighted in self.routed:
            weight = sample_weight if weighted else None
            metric.update_state(y, prediction, sample_weight=weight)


class RoutingMetric(keras.metrics.Metric):
    """Mean relative cost, and the share that leaves at each exit.

    Its result is a dict `mean_cost`, `exit_0_share`, ..., `final_share`. The
    thresholds are kept as a variable, so that a compiled evaluation step
    follows when they change.

    Args:
        exit_names: Names of the exits, `final` last.
        relative_costs: Array (E + 1,).
    """

    def __init__(self, exit_names, relative_costs):
        super().__init__(name="routing", dtype="float32")
        self.exit_names = exit_names
        self.relative_costs = np.asarray(relative_costs, "float32")
        early = len(exit_names) - 1
        self.thresholds = self.add_variable(
            (early,), initializer="zeros", name="thresholds"
        )
        self.counts = self.add_variable(
            (early + 1,), initializer="zeros", name="counts"
        )

    def set_thresholds(self, thresholds):
        self.thresholds.assign(thresholds)

    def route(self, outputs, policy, head):
        """Index of the exit that each sample leaves at: (batch,) integers."""
        early = len(self.exit_names) - 1
        leaves_at = None
        carry = None
        for i, name in enumerate(self.exit_names[:-1]):
            score, carry = score_of(
                policy,
                head,
                outputs[name],
                outputs[confidence_name(name)],
                carry,
                i,
            )
            if leaves_at is None:
                leaves_at = ops.full_like(score, early, dtype="int32")
            leaves = (score > self.thresholds[i]) & (leaves_at == early)
            leaves_at = ops.where(leaves, i, leaves_at)
        return leaves_at

    def answers(self, outputs, leaves_at):
        """Each sample's answer at the exit that it leaves at."""
        answer = as_float(outputs[FINAL])
        shape = (-1,) + (1,) * (len(answer.shape) - 1)
        for i, name in enumerate(self.exit_names[:-1]):
            here = ops.reshape(leaves_at == i, shape)
            answer = ops.where(here, as_float(outputs[name]), answer)
        return answer

    def update_state(self, leaves_at):
        taken = ops.one_hot(leaves_at, len(self.exit_names), dtype=self.dtype)
        self.counts.assign_add(ops.sum(taken, axis=0))

    def reset_state(self):
        self.counts.assign(ops.zeros(self.counts.shape))

    def result(self):
        shares = self.counts / ops.maximum(ops.sum(self.counts), 1.0)
        costs = ops.convert_to_tensor(self.relative_costs)
        found = {"mean_cost": ops.sum(shares * costs)}
        for i, name in enumerate(self.exit_names):
            found[f"{name}_share"] = shares[i]
        return found


class Accuracy(keras.metrics.MeanMetricWrapper):
    """Share of right answers, for any head and any form of labels.

    Args:
        head: The model's `tasks.Head`.
        name: Name of the metric.
    """

    def __init__(self, head, name="accuracy"):
        def right(y_true, y_pred):
            if head.task == "multilabel":
                y_true = ops.reshape(y_true, ops.shape(y_pred))
                y_true = ops.round(ops.cast(y_true, "float32"))
                found = ops.cast(head.classes(y_pred), "float32")
                return ops.cast(found == y_true, "float32")
            found = head.classes(y_pred)
            rank = len(y_pred.shape)
            if len(y_true.shape) == rank and y_true.shape[-1] == head.units:
                y_true = ops.argmax(y_true, axis=-1)
            elif len(y_true.shape) == rank:
                y_true = ops.squeeze(y_true, axis=-1)
            same = ops.cast(y_true, found.dtype) == found
            return ops.cast(same, "float32")

        super().__init__(right, name=name)


def _as_list(metrics):
    if metrics is None:
        return []
    return list(metrics) if isinstance(metrics, (list, tuple)) else [metrics]


def _make(kind, head, exit_name):
    """A metric of its own for one exit, named `<exit>_<metric>`."""
    if kind in ("accuracy", "acc") and head.task != "regression":
        return Accuracy(head, name=f"{exit_name}_accuracy")
    if isinstance(kind, keras.metrics.Metric):
        config = {**kind.get_config(), "name": f"{exit_name}_{kind.name}"}
        return type(kind).from_config(config)
    metric = keras.metrics.get(kind)
    if isinstance(metric, keras.metrics.Metric):
        return _make(metric, head, exit_name)
    name = kind if isinstance(kind, str) else kind.__name__
    return keras.metrics.MeanMetricWrapper(metric, name=f"{exit_name}_{name}")
