"""Answers that skip the work behind the exit each sample leaves at.

After every stage the samples that have left are taken out of the batch, and
only the others enter the next stage; see `engines` for how.
"""

import numpy as np

from keras_earlyexit.engines import engine_for
from keras_earlyexit.inputs import as_batches, as_zeros, num_rows
from keras_earlyexit.results import ExitResult

DEFAULT_BATCH_SIZE = 256


class Router:
    """Holds what is compiled to answer with an `EarlyExitModel`.

    Args:
        model: An `EarlyExitModel`. The policy it has now is used; weights and
            that policy's thresholds are read at every call.

    Example:

    ```python
    router = ee.Router(model)
    result = router.predict_exits(x)
    print(result.mean_cost)
    ```
    """

    def __init__(self, model):
        self._model = model
        self._policy = model.policy
        self._stages = model.stages
        self._engine = engine_for(model)

    def warm_up(self, batch_sizes=(1, DEFAULT_BATCH_SIZE)):
        """Compiles what batches of these sizes need, before they come.

        Args:
            batch_sizes: Batch sizes, in samples. On JAX the smaller batches
                that are left behind each exit are compiled for, too; and if
                there have been answers, some sizes that fit the numbers of
                samples that have gone on.

        Raises:
            ValueError: If a batch size is below 1.
        """
        sizes = set(batch_sizes)
        if not sizes or min(sizes) < 1:
            raise ValueError(
                "Expected batch sizes of at least 1. Received: "
                f"batch_sizes={batch_sizes!r}."
            )
        never = np.full(len(self._stages) - 1, np.inf, "float32")
        for size in self._engine.sizes(sizes):
            self.route(as_zeros(self._model.net.input, size), never)

    def predict_exits(self, x, batch_size=None, steps=None, thresholds=None):
        """Answers every sample at the exit that it leaves at.

        Args:
            x: Arrays, tensors (a list or dict for several inputs), a
                `tf.data.Dataset`, a `keras.utils.PyDataset` or a generator of
                batches.
            batch_size: Rows that are routed together; 256 by default. Not for
                datasets and generators, which bring their own batches.
            steps: Number of batches to take from a dataset or generator.
            thresholds: Array (E,) in place of the policy's thresholds.

        Returns:
            An `ExitResult`.

        Raises:
            ValueError: If `x` does not fit the model's inputs, or if answers
                come out as NaN.
        """
        batches, _ = self.batches(x, batch_size, steps)
        return self.result([self.route(batch, thresholds) for batch in batches])

    def batches(self, x, batch_size=None, steps=None):
        """The batches of any input: an iterator, and how many, or `None`."""
        if batch_size is None:
            batch_size = DEFAULT_BATCH_SIZE
        return as_batches(x, self._model.net.input, batch_size, steps)

    def route(self, batch, thresholds=None):
        """Routes one batch: arrays (prediction, exit index, score)."""
        if thresholds is None:
            thresholds = self._policy.thresholds(len(self._stages) - 1)
        thresholds = np.asarray(thresholds, "float32")
        if num_rows(batch):
            return self._engine(batch, thresholds)
        shape = self._stages[-1].output["prediction"].shape[1:]
        empty = np.zeros((0, *shape), "float32")
        return empty, np.zeros(0, "int64"), np.zeros(0, "float32")

    def result(self, found):
        """The `ExitResult` of what `route` returned for each batch."""
        predictions, exit_index, score = (
            parts[0] if len(parts) == 1 else np.concatenate(parts)
            for parts in zip(*found, strict=True)
        )
        _refuse_nan(predictions)
        return ExitResult(
            predictions=predictions,
            exit_index=exit_index,
            score=score,
            relative_cost=self._model.relative_costs[exit_index],
        )


def _refuse_nan(predictions):
    axes = tuple(range(1, predictions.ndim))
    rows = np.flatnonzero(np.isnan(predictions).any(axis=axes))
    if len(rows):
        raise ValueError(
            "Expected finite inputs and weights. Received: inputs for which "
            f"the answers of {len(rows)} of {len(predictions)} samples are "
            f"NaN, at rows {rows[:5].tolist()}. Look for NaN in these rows "
            "(`np.isnan(x)`), or for weights that training has driven to NaN."
        )
