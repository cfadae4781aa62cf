"""Answers that skip the work behind the exit each sample leaves at.

After every stage the samples that have left are taken out of the batch, and
only the others enter the next stage. On TensorFlow the whole route is one
compiled graph with a dynamic batch. On JAX the stages are compiled one by one
for a few batch sizes (*buckets*), so that nothing is compiled endlessly; torch
runs them as they are. Weights and thresholds are arguments or variables of
what is compiled, never constants: the current ones always answer.
"""

import keras
import numpy as np

from keras_earlyexit.folding import fold
from keras_earlyexit.inputs import as_batches, num_rows
from keras_earlyexit.results import ExitResult
from keras_earlyexit.stages import CARRY, FEATURE, Stages

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
        self._stages = Stages(
            fold(model.exit_graph), model.policy, model.head, model.name
        )
        engine = _ENGINES.get(keras.backend.backend(), _LoopEngine)
        self._engine = engine(self._stages)

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


class _GraphEngine:
    """TensorFlow: the whole route as one graph."""

    def __init__(self, stages):
        import tensorflow as tf

        self._tf = tf
        self._stages = stages
        self._dtype = stages[0].output["prediction"].dtype
        inputs = keras.tree.map_structure(
            lambda tensor: tf.TensorSpec(
                (None, *tensor.shape[1:]), tensor.dtype
            ),
            stages[0].input,
        )
        early = tf.TensorSpec((len(stages) - 1,), tf.float32)
        self._compiled = tf.function(
            self._start, input_signature=[inputs, early], autograph=False
        )

    def __call__(self, batch, thresholds):
        found = self._compiled(batch, thresholds)
        return tuple(part.numpy() for part in found)

    def _start(self, inputs, thresholds):
        rows = self._tf.shape(keras.tree.flatten(inputs)[0])[0]
        return self._from_stage(0, inputs, thresholds, rows)

    def _from_stage(self, index, inputs, thresholds, rows):
        """Answers of all rows that enter a stage: (prediction, exit, score)."""
        tf = self._tf
        outputs = self._stages[index](inputs, training=False)
        prediction = tf.cast(outputs["prediction"], self._dtype)
        if index == len(self._stages) - 1:
            return (
                prediction,
                tf.fill([rows], tf.constant(index, tf.int64)),
                tf.fill([rows], tf.constant(float("nan"), tf.float32)),
            )
        score = tf.cast(outputs["score"], tf.float32)
        here = (
            prediction,
            tf.fill([rows], tf.constant(index, tf.int64)),
            score,
        )
        staying = tf.where(tf.logical_not(score > thresholds[index]))
        left = tf.shape(staying)[0]

        def all_stay():
            return left == rows

        def take(tensor):
            return tf.cond(
                all_stay(),
                lambda: tensor,
                lambda: tf.gather(tensor, staying[:, 0]),
            )

        def go_on():
            rest = self._from_stage(
                index + 1, _handed_on(outputs, take), thresholds, left
            )
            return tf.cond(
                all_stay(),
                lambda: rest,
                lambda: tuple(
                    tf.tensor_scatter_nd_update(mine, staying, theirs)
                    for mine, theirs in zip(here, rest, strict=True)
                ),
            )

        return tf.cond(left == 0, lambda: here, go_on)


class _LoopEngine:
    """The route as a loop over the stages, the batch compacted between."""

    def __init__(self, stages):
        self._stages = stages

    def __call__(self, batch, thresholds):
        rows = num_rows(batch)
        waiting = np.arange(rows)
        inputs = self._prepare(batch)
        prediction = None
        exit_index = np.full(rows, len(self._stages) - 1)
        scores = np.full(rows, np.nan, "float32")
        for index in range(len(self._stages)):
            outputs = self._run(index, inputs)
            found = self._fetch(outputs["prediction"], len(waiting))
            if prediction is None:
                prediction = np.zeros((rows, *found.shape[1:]), found.dtype)
            if index == len(self._stages) - 1:
                prediction[waiting] = found
                break
            score = self._fetch(outputs["score"], len(waiting))
            leaves = score > thresholds[index]
            gone = waiting[leaves]
            prediction[gone] = found[leaves]
            exit_index[gone] = index
            scores[gone] = score[leaves]
            waiting = waiting[~leaves]
            if not len(waiting):
                break
            inputs = self._keep(outputs, np.flatnonzero(~leaves), len(leaves))
        return prediction, exit_index, scores

    def _prepare(self, batch):
        return batch

    def _run(self, index, inputs):
        return self._stages[index](inputs, training=False)

    def _keep(self, outputs, rows, total):
        """The next stage's inputs: the given rows of what a stage returned."""
        if len(rows) == total:
            return _handed_on(outputs, lambda tensor: tensor)
        return _handed_on(
            outputs, lambda tensor: keras.ops.take(tensor, rows, axis=0)
        )

    def _fetch(self, tensor, rows):
        return keras.ops.convert_to_numpy(tensor)[:rows]


class _TorchEngine(_LoopEngine):
    """torch: the stages as they are, without recording gradients."""

    def __init__(self, stages):
        import torch

        super().__init__(stages)
        self._no_grad = torch.no_grad

    def __call__(self, batch, thresholds):
        with self._no_grad():
            return super().__call__(batch, thresholds)


class _JaxEngine(_LoopEngine):
    """JAX: every stage compiled once per bucket."""

    def __init__(self, stages):
        import jax

        super().__init__(stages)
        self._compiled = [jax.jit(_stateless(stage, jax)) for stage in stages]

    def _prepare(self, batch):
        rows = num_rows(batch)
        padding = _bucket(rows) - rows
        return keras.tree.map_structure(
            lambda array: (
                np.concatenate([array, array[:1].repeat(padding, 0)])
                if padding
                else np.asarray(array)
            ),
            batch,
        )

    def _run(self, index, inputs):
        stage = self._stages[index]
        return self._compiled[index](
            [v.value for v in stage.trainable_variables],
            [v.value for v in stage.non_trainable_variables],
            inputs,
        )

    def _keep(self, outputs, rows, total):
        bucket = _bucket(len(rows))
        if len(rows) == total and bucket == len(outputs[FEATURE]):
            return _handed_on(outputs, lambda tensor: tensor)
        padded = np.zeros(bucket, "int32")
        padded[: len(rows)] = rows
        return _handed_on(
            outputs, lambda tensor: keras.ops.take(tensor, padded, axis=0)
        )


def _handed_on(outputs, function):
    """What the next stage takes: the feature, and the carry if there is one."""
    feature = function(outputs[FEATURE])
    if CARRY not in outputs:
        return feature
    return {FEATURE: feature, CARRY: function(outputs[CARRY])}


def _stateless(stage, jax):
    def run(trainable, non_trainable, inputs):
        outputs, _ = stage.stateless_call(
            trainable, non_trainable, inputs, training=False
        )
        return outputs

    return run


def _bucket(rows):
    """The smallest bucket for some rows: 2^k or 3 * 2^k."""
    size = 1
    while size < rows:
        size *= 2
    smaller = size // 4 * 3
    return smaller if smaller >= rows else size


_ENGINES = {
    "tensorflow": _GraphEngine,
    "jax": _JaxEngine,
    "torch": _TorchEngine,
}
