"""What of a Keras model is timed: its stages, its routes, the plain model.

All of it runs as a `Router` runs it: compiled where the backend compiles, and
with batch normalisation folded away where the router does that. So what is
measured differs by the work alone, not by the way to it.
"""

import functools

import keras
import numpy as np

from keras_earlyexit import call_graph, cost, surgery
from keras_earlyexit.engines.graph import FOLD_FROM_ROWS
from keras_earlyexit.engines.handing_on import handed_on
from keras_earlyexit.exit_graph import FINAL
from keras_earlyexit.folding import fold
from keras_earlyexit.inputs import as_inputs, as_zeros, num_rows
from keras_earlyexit.profiling.bundle_runs import Run, thresholds_to
from keras_earlyexit.routing import Router
from keras_earlyexit.stages import Stages


class ExitRuns:
    """The runs of an `EarlyExitModel`, with its present policy."""

    def __init__(self, model):
        self._model = model
        self._router = Router(model)
        self._macs = [_macs(part) for part in self._parts(folded=False)]
        self._made = {}
        self.name = model.name
        self.backend, self.device = _backend(), _device()

    def batch(self, x, rows):
        return _batch(x, self._model.net.input, rows)

    def runs(self, batch):
        """A list of `Run`, for one batch."""
        *stages, plain = self._compiled(num_rows(batch))
        names = self._model.exit_names
        early = len(names) - 1
        runs, inputs = [], batch
        for k, stage in enumerate(stages):
            wanted = ["prediction"] if k == early else ["prediction", "score"]
            call = _waiting(stage, inputs, wanted)
            runs.append(Run("stage", names[k], self._macs[k], call))
            if k < early:
                inputs = handed_on(stage(inputs), lambda tensor: tensor)
        for k, name in enumerate(names):
            thresholds = thresholds_to(k, early)
            call = functools.partial(self._router.route, batch, thresholds)
            runs.append(Run("exit", name, None, call))
        call = _waiting(plain, batch)
        runs.append(Run("plain", "plain", self._macs[-1], call))
        return runs

    def _compiled(self, rows):
        """What `_parts` are for so many rows, as compiled functions."""
        folded = _backend() == "tensorflow" and rows >= FOLD_FROM_ROWS
        key = folded, rows == 1
        if key not in self._made:
            self._made[key] = list(map(_compiled, self._parts(folded)))
        return self._made[key]

    def _parts(self, folded):
        """The stages and the model without exits, Keras models."""
        model = self._model
        if not folded:
            return [*model.stages, _plain(model.exit_graph)]
        exits = fold(model.exit_graph)
        stages = Stages(exits, model.policy, model.head, model.name)
        return [*stages, _plain(exits)]


class PlainRuns:
    """The one run of a Keras model without exits."""

    def __init__(self, model):
        self._model = model
        self.name = model.name
        self.backend, self.device = _backend(), _device()

    def batch(self, x, rows):
        reference = getattr(self._model, "input", None)
        if x is None and reference is None:
            raise ValueError(
                "Expected samples to run a model on whose inputs are not "
                f"known. Received: x=None for {self.name!r}. Pass "
                "`profile(model, x=x)`."
            )
        return _batch(x, reference, rows)

    def runs(self, batch):
        """A list of one `Run`, for one batch."""
        if not self._model.built:
            self._model(batch)
        call = _waiting(_compiled(self._model), batch)
        return [Run("stage", FINAL, _macs(self._model), call)]


def of(model):
    """The runs of a Keras model, with or without exits."""
    with_exits = hasattr(model, "exit_graph")
    return ExitRuns(model) if with_exits else PlainRuns(model)


def _waiting(function, inputs, wanted=None):
    """A run that ends when the answers are there.

    Args:
        function: What is run.
        inputs: What it gets.
        wanted: Names of the outputs to wait for; `None`: the first one.
    """

    def call():
        outputs = function(inputs)
        if wanted is None:
            found = keras.tree.flatten(outputs)[:1]
        else:
            found = [outputs[name] for name in wanted]
        for tensor in found:
            keras.ops.convert_to_numpy(tensor)

    return call


def _device():
    """Where Keras runs a model, such as `"cpu:0"`."""
    if _backend() == "torch":
        return str(keras.ops.zeros(()).device)
    devices = getattr(keras.distribution, "list_devices", list)()
    return devices[0] if devices else "cpu"


def _backend():
    return keras.backend.backend()


def _batch(x, reference, rows):
    """A batch of some rows: of samples, over and over, or of zeros."""
    if x is None:
        return as_zeros(reference, rows)
    if reference is not None:
        x = as_inputs(x, reference)
    if not num_rows(x):
        raise ValueError(
            "Expected at least one sample. Received: x without any."
        )

    def repeated(array):
        array = keras.ops.convert_to_numpy(array)
        return array[np.arange(rows) % len(array)]

    return keras.tree.map_structure(repeated, x)


def _plain(exits):
    """The model without exits."""
    inputs = keras.tree.map_structure(surgery.input_like, exits.graph.inputs)
    given = call_graph.pairs(exits.graph.inputs, inputs)
    final = exits.heads[-1][0]
    return keras.Model(inputs, surgery.rerun(exits.graph, given, [final])[0])


def _macs(model):
    """MACs of a model for one sample, or `None` if not all can be counted."""
    try:
        table = cost.count(model)
    except ValueError:
        return None
    return table.macs if table.reliable else None


def _compiled(model):
    """A function of a batch, as fast as the backend has it.

    What is first called with one row is for one row from then on.
    """
    if _backend() == "tensorflow":
        return _graph(model)
    if _backend() == "jax":
        return _jitted(model)
    if _backend() == "torch":
        return _without_gradients(model)
    return lambda inputs: model(inputs, training=False)


def _graph(model):
    import tensorflow as tf

    made = []

    def run(inputs):
        leaves = list(map(tf.convert_to_tensor, keras.tree.flatten(inputs)))
        if not made:
            rows = 1 if leaves[0].shape[0] == 1 else None
            signature = [
                tf.TensorSpec((rows, *leaf.shape[1:]), leaf.dtype)
                for leaf in leaves
            ]
            graph = tf.function(
                lambda *leaves: model(
                    keras.tree.pack_sequence_as(inputs, leaves), training=False
                ),
                input_signature=signature,
                autograph=False,
            )
            # Takes half a millisecond less than a `tf.function`.
            made.append(graph.get_concrete_function())
        return made[0](*leaves)

    return run


def _jitted(model):
    import jax

    @jax.jit
    def run(trainable, non_trainable, inputs):
        # Not `training=False`, which is the default: unlike a call, this hands
        # it on to models that do not take it.
        return model.stateless_call(trainable, non_trainable, inputs)[0]

    return lambda inputs: run(
        [variable.value for variable in model.trainable_variables],
        [variable.value for variable in model.non_trainable_variables],
        inputs,
    )


def _without_gradients(model):
    import torch

    def run(inputs):
        with torch.no_grad():
            return model(inputs, training=False)

    return run
