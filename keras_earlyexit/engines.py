"""What runs the route on each backend.

On TensorFlow the whole route is one compiled graph with a dynamic batch. On JAX
the stages are compiled one by one for a few batch sizes (*buckets*), so that
nothing is compiled endlessly; torch runs them as they are. Weights and
thresholds are arguments or variables of what is compiled, never constants: the
current ones always answer.

An engine is called with a batch and thresholds (E,), and returns three arrays:
predictions, indices of the exits taken, scores.
"""

import functools
import threading

import keras
import numpy as np

from keras_earlyexit.folding import fold
from keras_earlyexit.inputs import num_rows
from keras_earlyexit.stages import CARRY, FEATURE, Stages

# From so many rows on, folding batch normalisation away at every call costs
# less than the passes over the features that it saves.
FOLD_FROM_ROWS = 8


class GraphEngine:
    """TensorFlow: the whole route as one graph."""

    def __init__(self, model):
        import tensorflow as tf

        self._tf = tf
        self._stages = model.stages
        folded = fold(model.exit_graph)
        folded = Stages(folded, model.policy, model.head, model.name)
        self._graphs = [
            _Lazily(functools.partial(self._compile, stages))
            for stages in (model.stages, folded)
        ]
        self._dtype = self._stages[0].output["prediction"].dtype
        self._thresholds = None, None

    def __call__(self, batch, thresholds):
        tf = self._tf
        rows = num_rows(batch)
        compiled = self._graphs[rows >= FOLD_FROM_ROWS]()
        # A concrete function wants tensors in the order of its signature; it
        # takes half a millisecond less than a `tf.function`.
        found = compiled(
            *(tf.convert_to_tensor(part) for part in keras.tree.flatten(batch)),
            self._as_tensor(thresholds),
        )
        return tuple(part.numpy() for part in found)

    def sizes(self, batch_sizes):
        return batch_sizes

    def _as_tensor(self, thresholds):
        """The thresholds as a tensor, the same one while they are the same."""
        key, tensor = self._thresholds
        if key is None or key.tobytes() != thresholds.tobytes():
            tensor = self._tf.constant(thresholds)
            self._thresholds = thresholds, tensor
        return tensor

    def _compile(self, stages):
        tf = self._tf
        inputs = stages[0].input
        leaves = [
            tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype)
            for tensor in keras.tree.flatten(inputs)
        ]
        early = tf.TensorSpec((len(stages) - 1,), tf.float32)

        def start(*tensors):
            *batch, thresholds = tensors
            rows = tf.shape(batch[0])[0]
            batch = keras.tree.pack_sequence_as(inputs, batch)
            return self._from_stage(stages, 0, batch, thresholds, rows)

        compiled = tf.function(
            start, input_signature=[*leaves, early], autograph=False
        )
        return compiled.get_concrete_function()

    def _from_stage(self, stages, index, inputs, thresholds, rows):
        """Answers of all rows that enter a stage: (prediction, exit, score)."""
        tf = self._tf
        outputs = stages[index](inputs, training=False)
        prediction = tf.cast(outputs["prediction"], self._dtype)
        if index == len(stages) - 1:
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
                stages, index + 1, _handed_on(outputs, take), thresholds, left
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


class _Lazily:
    """Makes something when it is first needed, once, whoever asks."""

    def __init__(self, make):
        self._make = make
        self._lock = threading.Lock()
        self._made = None

    def __call__(self):
        if self._made is None:
            with self._lock:
                if self._made is None:
                    self._made = self._make()
        return self._made


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
            return _handed_on(outputs, lambda tensor: tensor)
        return _handed_on(
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

    def sizes(self, batch_sizes):
        return {_bucket(rows + 1) for rows in range(max(batch_sizes))}

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


def _stateless(stage):
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
    "tensorflow": GraphEngine,
    "jax": JaxEngine,
    "torch": TorchEngine,
}


def engine_for(model):
    """The engine of the present backend, for a model's present policy."""
    return _ENGINES.get(keras.backend.backend(), LoopEngine)(model)
