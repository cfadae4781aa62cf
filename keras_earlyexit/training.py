"""How an early-exit model trains: one objective over all exits.

`compute_loss` and `compute_metrics` are overridden, not `train_step`, so that
everything else is Keras' own on every backend.
"""

import warnings

import keras
import numpy as np
from keras import ops

from keras_earlyexit import objectives, policies
from keras_earlyexit.checks import FiniteLoss, check_data
from keras_earlyexit.inputs import as_labelled_batches
from keras_earlyexit.metrics import ExitMetrics
from keras_earlyexit.objectives.exit_tags import INDEX, LABEL
from keras_earlyexit.routing import DEFAULT_BATCH_SIZE
from keras_earlyexit.stages import FINAL_CONFIDENCE, confidence_name


class ExitTraining:
    """The training half of `EarlyExitModel`, mixed into it."""

    objective = None
    uses_final_confidence = False
    _exit_metrics = None
    _tag_table = None
    _evaluating = False

    def compile(
        self,
        optimizer="rmsprop",
        objective="eenet_v2",
        loss=None,
        metrics=None,
        *,
        weighted_metrics=None,
        **options,
    ):
        """Configures training.

        Args:
            optimizer: A Keras optimizer or its name.
            objective: A training objective, its name or config (see
                `ee.objectives.get`). It brings its policy along, unless one
                was given.
            loss: Base loss of an exit, for objectives that take one; `None`
                is the task's own.
            metrics: Metrics for every exit and for the routed answers; `None`
                is accuracy, or the mean absolute error for values.
            weighted_metrics: The same, weighted by `sample_weight`.
            **options: `run_eagerly`, `steps_per_execution`, `jit_compile` and
                `auto_scale_loss`, as in `keras.Model.compile`.

        Raises:
            ValueError: If the objective or a metric is unknown.
        """
        objective = objectives.get(objective).for_head(self.head, loss)
        self._use_final_confidence(objective)
        super().compile(optimizer=optimizer, **options)
        self.objective = objective
        self._exit_metrics = ExitMetrics(
            self, objective, metrics, weighted_metrics
        )
        self._compile_options = _Untracked(
            loss=loss,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            **options,
        )
        if not self.has_given_policy:
            self.set_policy(self._policy_of(objective), given=False)
        self.warn_if_untrained()

    def _use_final_confidence(self, objective):
        """Trains the confidence of `final` only for those who look at it."""
        self.uses_final_confidence = objective.uses_final_confidence
        if FINAL_CONFIDENCE in self.net.output:
            layer = self.net.get_layer(FINAL_CONFIDENCE)
            layer.trainable = objective.uses_final_confidence
        elif objective.uses_final_confidence:
            raise ValueError(
                f"Objective {objective.name!r} needs a confidence at `final`. "
                "Expected an output 'final_confidence' of shape (batch, 1). "
                f"Received: a network with outputs {sorted(self.net.output)}."
            )

    def _policy_of(self, objective):
        name = objective.policy
        if self.head.task == "regression":
            name = "learned"
        threshold = objective.threshold(len(self.exit_names) - 1)
        return policies.get(name, threshold=threshold)

    def warn_if_untrained(self):
        """Warns if the policy reads what the objective does not train."""
        objective, policy = self.objective, self.policy
        if objective is None or objective.trains_confidence:
            return
        if policy.uses_confidence:
            warnings.warn(
                f"Policy {policy.name!r} reads the confidence branches, which "
                f"objective {objective.name!r} does not train: who leaves "
                "early is left to chance. Choose a policy such as "
                "'max_probability', or another objective.",
                stacklevel=3,
            )

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=True,
        class_weight=None,
        sample_weight=None,
        **kwargs,
    ):
        """Trains all exits; see `keras.Model.fit` for the arguments.

        Logs `loss` and its parts and the metrics of every exit; on validation
        data also those of the routed answers: `val_routed_accuracy`,
        `val_mean_cost`, `val_exit_0_share`, ...

        Raises:
            ValueError: If labels do not fit the head, if inputs contain NaN,
                or if the loss becomes NaN.
        """
        self._check_compiled("fit")
        check_data(self.head, x, y)
        if isinstance(validation_data, (list, tuple)):
            check_data(self.head, *validation_data[:2])
        if class_weight is not None and self.objective.uses_exit_tags:
            sample_weight = _class_weights(class_weight, y, sample_weight)
            class_weight = None
        own = self.objective.callbacks(self)
        for callback in own:
            if hasattr(callback, "prepare"):
                x, y = callback.prepare(x, y)
                self._tag_table = _Untracked(metric=callback.table)
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = [*own, *_as_list(callbacks)]
            if not any(
                isinstance(callback, keras.callbacks.TerminateOnNaN)
                for callback in callbacks
            ):
                callbacks.append(FiniteLoss())
        if self._tag_table is not None:
            self.train_function = None
        try:
            return super().fit(
                x,
                y,
                batch_size,
                epochs,
                verbose,
                callbacks,
                validation_split,
                validation_data,
                shuffle,
                class_weight,
                sample_weight,
                **kwargs,
            )
        finally:
            if self._tag_table is not None:
                self._tag_table = None
                self.train_function = None

    def evaluate(
        self,
        x=None,
        y=None,
        batch_size=None,
        verbose="auto",
        sample_weight=None,
        steps=None,
        callbacks=None,
        return_dict=False,
        routed_only=False,
        **kwargs,
    ):
        """Evaluates every exit and the routed answers.

        See `keras.Model.evaluate` for the arguments. Every exit answers every
        sample, since each exit's loss and metrics are reported; beside them
        stand `routed_accuracy`, `mean_cost`, `exit_0_share`, ...: what
        `predict` gives, from the same scores and thresholds.

        Args:
            routed_only: Whether to report these routed figures only. Samples
                then really leave, as in `predict`, and the work behind is
                skipped.

        Returns:
            A list of values, or a dict with `return_dict=True`.

        Raises:
            ValueError: If the model is not compiled, or if labels or inputs
                cannot be right.
        """
        self._check_compiled("evaluate")
        check_data(self.head, x, y)
        if routed_only:
            batches = as_labelled_batches(
                x,
                y,
                sample_weight,
                self.net.input,
                batch_size or DEFAULT_BATCH_SIZE,
                steps,
            )
            logs = self._evaluate_routed(batches)
            return logs if return_dict else list(logs.values())
        with self._routed_metrics():
            return super().evaluate(
                x,
                y,
                batch_size,
                verbose,
                sample_weight,
                steps,
                callbacks,
                return_dict,
                **kwargs,
            )

    def _evaluate_routed(self, batches):
        metrics = self._exit_metrics
        for metric in metrics.of_routing():
            metric.reset_state()
        for x, y, sample_weight in batches:
            prediction, exit_index, _ = self.router.route(x)
            metrics.update_routed(
                ops.convert_to_tensor(y),
                ops.convert_to_tensor(prediction),
                ops.convert_to_tensor(exit_index),
                sample_weight,
            )
        logs = {}
        for metric in metrics.of_routing():
            result = metric.result()
            if not isinstance(result, dict):
                result = {metric.name: result}
            logs.update({name: float(value) for name, value in result.items()})
        return logs

    def test_on_batch(self, *args, **kwargs):
        """Evaluates one batch; see `keras.Model.test_on_batch`."""
        self._check_compiled("test_on_batch")
        with self._routed_metrics():
            return super().test_on_batch(*args, **kwargs)

    def _routed_metrics(self):
        thresholds = self.policy.thresholds(len(self.exit_names) - 1)
        self._exit_metrics.routing.set_thresholds(thresholds)
        return _Evaluating(self)

    @property
    def metrics(self):
        """The metrics of what runs now: training, or evaluation."""
        metrics = super().metrics
        if self._exit_metrics is None:
            return metrics
        if self._evaluating:
            return [*metrics, *self._exit_metrics.of_evaluation()]
        metrics = [*metrics, *self._exit_metrics.of_training()]
        if self._tag_table is not None:
            metrics.append(self._tag_table.metric)
        return metrics

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """The objective's loss over all exits, and layers' own losses."""
        objective = self.objective
        label, tags = y, None
        if isinstance(y, dict):
            label = y[LABEL]
            if training:
                tags = ops.take(self._tag_table.metric.tags, y[INDEX])
        confidences = self._confidences(y_pred)
        parts = objective(
            label,
            [y_pred[name] for name in self.exit_names],
            confidences,
            list(self.relative_costs),
            sample_weight=sample_weight,
            exit_tags=tags,
        )
        for name, metric in self._exit_metrics.parts.items():
            metric.update_state(parts[name], ops.shape(label)[0])
        loss = parts["loss"]
        # A branch that the objective leaves out has a gradient of zero, not
        # none at all, which Keras would warn about.
        loss += 0.0 * sum(ops.sum(confidence) for confidence in confidences)
        return loss + sum(self.losses)

    def _confidences(self, outputs):
        names = [confidence_name(name) for name in self.exit_names]
        return [outputs[name] for name in names if name in outputs]

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Updates the metrics of every exit; in evaluation the routed ones."""
        label = y[LABEL] if isinstance(y, dict) else y
        metrics = self._exit_metrics
        metrics.update_exits(label, y_pred, sample_weight)
        if self._evaluating:
            metrics.update_from_outputs(
                label, y_pred, sample_weight, self.policy, self.head
            )
        return self.get_metrics_result()

    def _check_compiled(self, method):
        if self.objective is None:
            raise ValueError(
                f"Expected a compiled model before `{method}`. Received: "
                f"'{self.name}', not compiled. Call "
                "`model.compile('adam')` first."
            )

    def get_compile_config(self):
        if self.objective is None:
            return {}
        options = {
            name: keras.saving.serialize_keras_object(value)
            for name, value in vars(self._compile_options).items()
        }
        return {
            "optimizer": keras.saving.serialize_keras_object(self.optimizer),
            "objective": keras.saving.serialize_keras_object(self.objective),
            **options,
        }

    def compile_from_config(self, config):
        config = {
            name: keras.saving.deserialize_keras_object(value)
            for name, value in config.items()
        }
        policy = self.policy
        self.compile(**config)
        self.set_policy(policy, given=self.has_given_policy)
        self.optimizer.build(self.trainable_variables)


class _Untracked:
    """Keeps values from being tracked by Keras as parts of the model."""

    def __init__(self, **values):
        vars(self).update(values)


class _Evaluating:
    """While this is entered, a model's metrics are those of evaluation."""

    def __init__(self, model):
        self._model = model

    def __enter__(self):
        self._before = self._model._evaluating
        self._model._evaluating = True

    def __exit__(self, *exception):
        self._model._evaluating = self._before


def _as_list(callbacks):
    if callbacks is None:
        return []
    return (
        list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
    )


def _class_weights(class_weight, y, sample_weight):
    """Sample weights (batch,) that say what `class_weight` says."""
    labels = np.asarray(y)
    if labels.ndim > 1 and labels.shape[-1] > 1:
        labels = labels.argmax(axis=-1)
    labels = labels.reshape(-1)
    weights = np.ones(len(labels), "float32")
    for label, weight in class_weight.items():
        weights[labels == label] = weight
    return weights if sample_weight is None else weights * sample_weight
