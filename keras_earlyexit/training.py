"""How an early-exit model trains: one objective over all exits.

`compute_loss` and `compute_metrics` are overridden, not `train_step`, so that
everything else is Keras' own on every backend.
"""

import keras
import numpy as np
from keras import ops

from keras_earlyexit.checks import FiniteLoss, check_data
from keras_earlyexit.compiling import Untracked
from keras_earlyexit.exit_graph import confidence_name
from keras_earlyexit.inputs import as_inputs, is_arrays, num_rows
from keras_earlyexit.objectives.exit_tags import INDEX, LABEL


class ExitTraining:
    """The `fit` part of `EarlyExitModel`, mixed into it."""

    _tag_table = None

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
        check_data(
            self.head,
            x,
            y,
            sample_weight=sample_weight,
            class_weight=class_weight,
        )
        if isinstance(validation_data, (list, tuple)):
            check_data(self.head, *validation_data[:2])
        if class_weight is not None and self.objective.uses_exit_tags:
            sample_weight = _class_weights(class_weight, y, sample_weight)
            class_weight = None
        self._remember(x, validation_split)
        shown = []
        own = [*self.objective.callbacks(self), *self.regime.callbacks(self)]
        for callback in own:
            if hasattr(callback, "prepare"):
                x, y = callback.prepare(x, y)
                self._tag_table = Untracked(metric=callback.table)
            if hasattr(callback, "draw_from"):
                held_out = validation_split if validation_data is None else 0.0
                callback.draw_from(x, y, held_out)
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = [*own, *_as_list(callbacks)]
            if not any(
                isinstance(callback, keras.callbacks.TerminateOnNaN)
                for callback in callbacks
            ):
                callbacks.append(FiniteLoss())
            shown = [c for c in callbacks if _replaces_bar(c)]
            verbose = 0 if shown and verbose == "auto" else verbose
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
            # Whatever happened: a terminal is to be given back.
            for callback in shown:
                callback.close()
            if self._tag_table is not None:
                self._tag_table = None
                self.train_function = None

    def _remember(self, x, validation_split):
        """Keeps fingerprints of arrays: `ee.calibrate` wants other samples."""
        if not is_arrays(x):
            return
        inputs = as_inputs(x, self.net.input)
        rows = int(num_rows(inputs) * (1.0 - validation_split))
        if self.training_fingerprints is None:
            self.training_fingerprints = fingerprints()
        self.training_fingerprints.add(
            keras.tree.map_structure(lambda array: array[:rows], inputs)
        )

    @property
    def metrics(self):
        """The metrics of what runs now: training, or evaluation."""
        metrics = super().metrics
        if self._exit_metrics is None:
            return metrics
        metrics = [*metrics, *self.objective.states]
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
        of_answers = objective.of_answers
        if self.regime.final_only:
            of_answers = objective.of_final
        parts = of_answers(
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


def fingerprints(hashes=None):
    """Of at most 65,536 samples, half a megabyte with the weights."""
    from keras_earlyexit.calibration import Fingerprints

    return Fingerprints(hashes, capacity=2**16)


def _as_list(callbacks):
    if callbacks is None:
        return []
    return (
        list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
    )


def _replaces_bar(callback):
    return getattr(callback, "replaces_progress_bar", False)


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
