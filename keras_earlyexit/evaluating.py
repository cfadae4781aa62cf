"""How an early-exit model is evaluated: every exit, and the routed answers."""

from keras import ops

from keras_earlyexit.checks import check_data
from keras_earlyexit.inputs import as_labelled_batches
from keras_earlyexit.routing import DEFAULT_BATCH_SIZE


class ExitEvaluation:
    """The `evaluate` part of `EarlyExitModel`, mixed into it."""

    _evaluating = False

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
        check_data(self.head, x, y, sample_weight=sample_weight)
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


class _Evaluating:
    """While this is entered, a model's metrics are those of evaluation."""

    def __init__(self, model):
        self._model = model

    def __enter__(self):
        self._before = self._model._evaluating
        self._model._evaluating = True

    def __exit__(self, *exception):
        self._model._evaluating = self._before
