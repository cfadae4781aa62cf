"""The route as a loop over the stages: JAX and torch.

On JAX the stages are compiled one by one for a few batch sizes (*buckets*), so
that nothing is compiled endlessly; torch runs them as they are.
"""

import keras
import numpy as np

from keras_earlyexit.engines.buckets import Buckets, bucket
from keras_earlyexit.engines.handing_on import handed_on
from keras_earlyexit.inputs import num_rows
from keras_earlyexit.stages import FEATURE


class LoopEngine:
    """The route as a loop over the stages, the batch compacted between."""

    def __init__(self, model):
        self._stages = model.stages

    def sizes(self, batch_sizes):
        """The batch sizes to run, so that others are prepared for."""
        return batch_sizes

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
            return handed_on(outputs, lambda tensor: tensor)
        return handed_on(
            outputs, lambda tensor: keras.ops.take(tensor, rows, axis=0)
        )

    def _fetch(self, tensor, rows):
        return keras.ops.convert_to_numpy(tensor)[:rows]


class TorchEngine(LoopEngine):
    """torch: the stages as they are, without recording gradients."""

    def __init__(self, model):
        import torch

        super().__init__(model)
        self._no_grad = torch.no_grad

    def __call__(self, batch, thresholds):
        with self._no_grad():
            return super().__call__(batch, thresholds)


class JaxEngine(LoopEngine):
    """JAX: every stage compiled once per bucket."""

    def __init__(self, model):
        import jax

        super().__init__(model)
        self._compiled = [jax.jit(_stateless(stage)) for stage in self._stages]
        self._buckets = Buckets()

    def sizes(self, batch_sizes):
        self._buckets.choose()
        grid = {bucket(rows + 1) for rows in range(max(batch_sizes))}
        return grid.union(self._buckets.own)

    def _prepare(self, batch):
        rows = num_rows(batch)
        padding = self._buckets(rows) - rows
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
        self._buckets.note(len(rows))
        size = self._buckets(len(rows))
        if len(rows) == total and size == len(outputs[FEATURE]):
            return handed_on(outputs, lambda tensor: tensor)
        padded = np.zeros(size, "int32")
        padded[: len(rows)] = rows
        return handed_on(
            outputs, lambda tensor: keras.ops.take(tensor, padded, axis=0)
        )


def _stateless(stage):
    def run(trainable, non_trainable, inputs):
        outputs, _ = stage.stateless_call(
            trainable, non_trainable, inputs, training=False
        )
        return outputs

    return run
