"""The route as compiled graphs: TensorFlow.

For several rows the whole route is one graph: one for a few, where batch
normalisation is one operation, and one for many, where it is folded away. Both
take any batch size of their kind. For one row each stage is a graph of its own:
operations of stages that are not needed cost time, though they do nothing. All
are compiled when first needed.
"""

import threading

import keras
import numpy as np

from keras_earlyexit.engines import onednn
from keras_earlyexit.engines.calling import compiled
from keras_earlyexit.engines.handing_on import handed_on
from keras_earlyexit.folding import fold
from keras_earlyexit.fusing import fuse
from keras_earlyexit.inputs import num_rows
from keras_earlyexit.stages import Stages, crossing_of

# From so many rows on, folding batch normalisation away at every call costs
# less than the passes over the features that it saves.
FOLD_FROM_ROWS = 8


class GraphEngine:
    """TensorFlow: the whole route as one graph, or as one for each stage."""

    def __init__(self, model):
        import tensorflow as tf

        self._tf = tf
        self._stages = model.stages
        exits = model.exit_graph
        # oneDNN takes a convolution and its fused normalisation as one, which
        # is 10 times slower.
        few = exits if onednn.is_on() else fuse(exits)
        fused, folded = (
            Stages(changed, model.policy, model.head, model.name)
            for changed in (few, fold(exits))
        )
        self._one = [
            _Lazily(lambda index=index: self._compile_one(fused, index))
            for index in range(len(fused))
        ]
        self._few = _Lazily(lambda: self._compile(fused))
        self._many = _Lazily(lambda: self._compile(folded))
        self._dtype = self._stages[0].output["prediction"].dtype
        self._thresholds = None, None

    def __call__(self, batch, thresholds):
        tf = self._tf
        rows = num_rows(batch)
        tensors = [tf.convert_to_tensor(x) for x in keras.tree.flatten(batch)]
        if rows == 1:
            return self._route_one(tensors, thresholds)
        graph = self._many if rows >= FOLD_FROM_ROWS else self._few
        found = graph()(*tensors, self._as_tensor(thresholds))
        return tuple(part.numpy() for part in found)

    def _route_one(self, tensors, thresholds):
        """The same for one row: it leaves as a whole, or goes on as a whole."""
        for index, stage in enumerate(self._one):
            prediction, score, *tensors = stage()(*tensors)
            score = score.numpy()
            if not tensors or score[0] > thresholds[index]:
                break
        return prediction.numpy(), np.array([index]), score

    def sizes(self, batch_sizes):
        return batch_sizes

    def _as_tensor(self, thresholds):
        """The thresholds as a tensor, the same one while they are the same."""
        key, tensor = self._thresholds
        if key is None or key.tobytes() != thresholds.tobytes():
            tensor = self._tf.constant(thresholds)
            self._thresholds = thresholds, tensor
        return tensor

    def _compile_one(self, stages, index):
        inputs = stages[index].input

        def run(*tensors):
            batch = keras.tree.pack_sequence_as(inputs, tensors)
            outputs, (prediction, _, score) = self._run(stages, index, batch, 1)
            return prediction, score, *crossing_of(outputs)

        return compiled(run, self._specs(inputs, 1))

    def _compile(self, stages):
        tf = self._tf
        inputs = stages[0].input

        def start(*tensors):
            *batch, thresholds = tensors
            rows = tf.shape(batch[0])[0]
            batch = keras.tree.pack_sequence_as(inputs, batch)
            answers, _ = self.from_stage(stages, 0, batch, thresholds, rows)
            return answers

        early = tf.TensorSpec((len(stages) - 1,), tf.float32)
        return compiled(start, [*self._specs(inputs), early])

    def _specs(self, inputs, batch_size=None):
        return [
            self._tf.TensorSpec((batch_size, *tensor.shape[1:]), tensor.dtype)
            for tensor in keras.tree.flatten(inputs)
        ]

    def from_stage(self, stages, index, inputs, thresholds, rows, last=None):
        """The route from a stage on.

        Args:
            stages: The stages of a model.
            index: The stage to start with.
            inputs: What that stage takes, for all rows.
            thresholds: Tensor (E,).
            rows: Number of rows.
            last: The stage to end behind; `None` ends with `final`.

        Returns:
            `(answers, crossing)`: the prediction, the exit and the score of
            every row; and what the stage `last` hands on of the rows that
            stay behind it, which is nothing for `final`.
        """
        tf = self._tf
        outputs, here = self._run(stages, index, inputs, rows)
        if index == len(stages) - 1:
            return here, ()
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

        if index == last:
            return here, tuple(take(x) for x in crossing_of(outputs))

        def go_on():
            rest, crossing = self.from_stage(
                stages,
                index + 1,
                handed_on(outputs, take),
                thresholds,
                left,
                last,
            )
            answers = tf.cond(
                all_stay(),
                lambda: rest,
                lambda: tuple(
                    tf.tensor_scatter_nd_update(mine, staying, theirs)
                    for mine, theirs in zip(here, rest, strict=True)
                ),
            )
            return answers, crossing

        def stop():
            if last is None:
                return here, ()
            return here, tuple(
                tf.zeros((0, *(size or 0 for size in x.shape[1:])), x.dtype)
                for x in crossing_of(stages[last].output)
            )

        return tf.cond(left == 0, stop, go_on)

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
