"""The whole route as one compiled graph: TensorFlow.

Three graphs: for one row and for a few, where batch normalisation is one
operation, and for many, where it is folded away. Each takes any batch size of
its kind, and is compiled when it is first needed.
"""

import threading

import keras

from keras_earlyexit.engines.fusing import fuse
from keras_earlyexit.engines.handing_on import handed_on
from keras_earlyexit.folding import fold
from keras_earlyexit.inputs import num_rows
from keras_earlyexit.stages import Stages

# From so many rows on, folding batch normalisation away at every call costs
# less than the passes over the features that it saves.
FOLD_FROM_ROWS = 8


class GraphEngine:
    """TensorFlow: the whole route as one graph."""

    def __init__(self, model):
        import tensorflow as tf

        self._tf = tf
        self._stages = model.stages
        fused, folded = (
            Stages(
                change(model.exit_graph), model.policy, model.head, model.name
            )
            for change in (fuse, fold)
        )
        self._one = _Lazily(lambda: self._compile(fused, 1))
        self._few = _Lazily(lambda: self._compile(fused))
        self._many = _Lazily(lambda: self._compile(folded))
        self._dtype = self._stages[0].output["prediction"].dtype
        self._thresholds = None, None

    def __call__(self, batch, thresholds):
        tf = self._tf
        rows = num_rows(batch)
        graph = self._many if rows >= FOLD_FROM_ROWS else self._few
        compiled = self._one() if rows == 1 else graph()
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

    def _compile(self, stages, batch_size=None):
        tf = self._tf
        inputs = stages[0].input
        leaves = [
            tf.TensorSpec((batch_size, *tensor.shape[1:]), tensor.dtype)
            for tensor in keras.tree.flatten(inputs)
        ]
        early = tf.TensorSpec((len(stages) - 1,), tf.float32)

        def start(*tensors):
            *batch, thresholds = tensors
            rows = tf.shape(batch[0])[0]
            batch = keras.tree.pack_sequence_as(inputs, batch)
            if batch_size == 1:
                return self._one_from_stage(stages, 0, batch, thresholds)
            return self.from_stage(stages, 0, batch, thresholds, rows)

        compiled = tf.function(
            start, input_signature=[*leaves, early], autograph=False
        )
        return compiled.get_concrete_function()

    def from_stage(self, stages, index, inputs, thresholds, rows):
        """Answers of all rows that enter a stage: (prediction, exit, score)."""
        tf = self._tf
        outputs, here = self._run(stages, index, inputs, rows)
        if index == len(stages) - 1:
            return here
        score = here[-1]
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
            rest = self.from_stage(
                stages, index + 1, handed_on(outputs, take), thresholds, left
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

    def _one_from_stage(self, stages, index, inputs, thresholds):
        """The same for a batch of one: nothing to part or to put back."""
        outputs, here = self._run(stages, index, inputs, 1)
        if index == len(stages) - 1:
            return here
        return self._tf.cond(
            here[-1][0] > thresholds[index],
            lambda: here,
            lambda: self._one_from_stage(
                stages,
                index + 1,
                handed_on(outputs, lambda tensor: tensor),
                thresholds,
            ),
        )

    def _run(self, stages, index, inputs, rows):
        """What a stage returns, and the answers if all rows left there."""
        tf = self._tf
        outputs = stages[index](inputs, training=False)
        if index == len(stages) - 1:
            score = tf.fill([rows], tf.constant(float("nan"), tf.float32))
        else:
            score = tf.cast(outputs["score"], tf.float32)
        return outputs, (
            tf.cast(outputs["prediction"], self._dtype),
            tf.fill([rows], tf.constant(index, tf.int64)),
            score,
        )


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
