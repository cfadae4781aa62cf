"""What of training a Keras model is timed: a step of each of its segments.

The steps are Keras' own, forward, backward and the optimizer's update, on a
copy, so that no weight of the model moves. The loss is the mean square of all
outputs of the segment's exits: what it is costs next to nothing beside the
layers.
"""

import functools

import keras
import numpy as np

from keras_earlyexit import call_graph, surgery
from keras_earlyexit.cost.profiles import segment_name
from keras_earlyexit.exit_graph import FINAL
from keras_earlyexit.fusing import fused_network
from keras_earlyexit.profiling.bundle_runs import Run
from keras_earlyexit.splitting.partitioning import MEMORY, partition
from keras_earlyexit.stages import FEATURE


class TrainingRuns:
    """A run beside those of a model: training steps of its segments.

    Args:
        subject: An `ExitRuns` or `PlainRuns`.
        model: The Keras model that it runs.
        optimizer: Name of a Keras optimizer.

    Raises:
        TypeError, ValueError: If the model has no graph of layers, or if there
            is no such optimizer.
    """

    def __init__(self, subject, model, optimizer):
        self._subject = subject
        self._segments = [
            (name, _compiled(segment, optimizer, model), before)
            for name, segment, before in _segments(model)
        ]
        self.name = subject.name
        self.backend, self.device = subject.backend, subject.device

    def batch(self, x, rows):
        return self._subject.batch(x, rows)

    def runs(self, batch):
        """A list of `Run`, for one batch."""
        runs = self._subject.runs(batch)
        for name, segment, before in self._segments:
            inputs = batch
            if before is not None:
                inputs = keras.tree.map_structure(
                    keras.ops.convert_to_numpy, before.predict_on_batch(batch)
                )
            targets = keras.tree.map_structure(
                np.zeros_like, segment.predict_on_batch(inputs)
            )
            call = functools.partial(segment.train_on_batch, inputs, targets)
            runs.append(Run("training", name, None, call))
        return runs


def _segments(model):
    """Triples of name, segment, and what makes its inputs or `None`."""
    if not hasattr(model, "exit_graph"):
        return [(segment_name(FINAL, FINAL), _copied(model), None)]
    net = _copied(model.net)
    copied = type(model)(net, model.head, policy=model.policy)
    names = copied.exit_names
    found = []
    for k, name in enumerate(names[:-1]):
        edge, cloud = partition(copied, name)
        crossing = {
            key: edge.output[key]
            for key in (FEATURE, MEMORY)
            if key in edge.output
        }
        if len(crossing) == 1:
            (crossing,) = crossing.values()
        before = keras.Model(edge.input, crossing)
        found.append((segment_name(names[0], name), edge, None))
        found.append((segment_name(names[k + 1], FINAL), cloud, before))
    found.append((segment_name(names[0], FINAL), net, None))
    return found


def _copied(model):
    graph = surgery.copy(surgery.trace(model))
    inputs = keras.tree.map_structure(surgery.input_like, graph.inputs)
    given = call_graph.pairs(graph.inputs, inputs)
    leaves = keras.tree.flatten(graph.outputs)
    found = surgery.rerun(graph, given, leaves)
    outputs = keras.tree.pack_sequence_as(graph.outputs, found)
    return keras.Model(inputs, outputs, name=model.name)


def _compiled(segment, optimizer, model):
    """The answers of a segment's exits as a model that can be trained."""
    outputs = segment.output
    if isinstance(outputs, dict):
        outputs = {
            key: tensor
            for key, tensor in outputs.items()
            if key not in (FEATURE, MEMORY)
        }
    trained = keras.Model(segment.input, outputs)
    if hasattr(model, "exit_graph"):
        # As it is in `fit`, and where segments are trained apart.
        trained = fused_network(trained)
    trained.compile(
        keras.optimizers.get(optimizer),
        loss=keras.tree.map_structure(lambda _: "mean_squared_error", outputs),
        jit_compile=model.jit_compile if model.compiled else "auto",
    )
    return trained
