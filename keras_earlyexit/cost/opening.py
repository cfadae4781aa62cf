"""What a layer does inside: its `call`, run on symbolic tensors.

A block written by a user is one operation in a model. To count what it costs,
its `call` runs on tensors without values, and the calls of layers and of
`keras.ops` behind the result are read off. Nothing is computed or changed.

A layer stays closed if Keras cannot run its `call` on such tensors: if it
leaves `keras.ops`, if it calls a layer that is not built, or if it multiplies
its own weight from the left (`self.scale * x`; `x * self.scale` works).
"""

import contextlib
import inspect

import keras
from keras import layers

from keras_earlyexit import call_graph, surgery


def parts(call):
    """Takes the call of a layer apart.

    Args:
        call: A `Call` without unknown axes, the batch axis left aside.

    Returns:
        `(times, calls)`: a tuple of `Call` on tensors of batch size 1, in an
        order in which they can run, and how often they run: once, or once
        per step for recurrent and time-distributed layers. `calls` is `None`
        if the layer cannot be opened.
    """
    operation = call.operation
    times, function = 1, operation.call
    args, kwargs = keras.tree.map_structure(
        _at_batch_size_one, (call.args, call.kwargs)
    )
    for kind, parts_of_kind in _PARTS.items():
        # A subclass with a `call` of its own is opened like any other layer.
        if isinstance(operation, kind) and type(operation).call is kind.call:
            times, function, *args = parts_of_kind(operation, *args, **kwargs)
            kwargs = {}
    if "training" in inspect.signature(function).parameters:
        kwargs["training"] = False
    # Whatever a user's layer raises means the same: it cannot be opened.
    with contextlib.suppress(Exception):
        calls = surgery.record(operation, function, args, kwargs)
        return times, complete(calls)
    return times, None


def complete(calls):
    """Fills in axes that `EinsumDense` leaves open though its input has them.

    Args:
        calls: A sequence of `Call`, in an order in which they can run.

    Returns:
        A tuple of as many `Call`: the same ones, or in their place calls of
        the same operations on tensors with more of their axes known.
    """
    known, completed = {}, []

    def stand_in(leaf):
        return known.get(id(leaf), leaf)

    for call in calls:
        if has_unknown_shape(call):
            args = keras.tree.map_structure(stand_in, call.args)
            kwargs = keras.tree.map_structure(stand_in, call.kwargs)
            # A layer that fails on them keeps its tensors as they are.
            with contextlib.suppress(Exception):
                outputs = _outputs(call.operation, *args, **kwargs)
                known |= call_graph.pairs(call.outputs, outputs)
                call = call_graph.Call(call.operation, args, kwargs, outputs)
        completed.append(call)
    return tuple(completed)


def has_unknown_shape(call):
    """Whether an axis other than the batch axis has an unknown size."""
    tensors = (*call.inputs, *call.outputs)
    return any(None in tensor.shape[1:] for tensor in tensors)


def _outputs(operation, *args, **kwargs):
    outputs = operation.compute_output_spec(*args, **kwargs)
    if isinstance(operation, layers.EinsumDense):
        # On new tensors, for Keras notes in a tensor's maker who has read it.
        operands = args[0], operation.kernel
        operands = [keras.KerasTensor(operand.shape) for operand in operands]
        shape = keras.ops.einsum(operation.equation, *operands).shape
        outputs = keras.KerasTensor(shape, outputs.dtype)
    return tuple(keras.tree.flatten(outputs))


def _at_batch_size_one(leaf):
    if not isinstance(leaf, keras.KerasTensor):
        return leaf
    shape = [1 if size is None else size for size in leaf.shape]
    return keras.KerasTensor(shape, leaf.dtype)


# The `call` of these loops over the steps, out of sight of symbolic tensors.


def _recurrent(layer, sequences, initial_state=None, **kwargs):
    batch_size, steps, *features = sequences.shape
    states = keras.tree.map_structure(
        lambda state: keras.KerasTensor(state.shape),
        layer.get_initial_state(batch_size),
    )
    step = keras.KerasTensor((batch_size, *features))
    return steps, layer.cell.call, step, states


def _time_distributed(layer, inputs, **kwargs):
    batch_size, steps, *features = inputs.shape
    step = keras.KerasTensor((batch_size, *features), inputs.dtype)
    return steps, layer.layer.__call__, step


def _bidirectional(layer, sequences, **kwargs):
    ways = layer.forward_layer, layer.backward_layer
    return 1, lambda x: [way(x) for way in ways], sequences


_RECURRENT = "RNN SimpleRNN LSTM GRU ConvLSTM1D ConvLSTM2D ConvLSTM3D"
_PARTS = {
    **{getattr(layers, name): _recurrent for name in _RECURRENT.split()},
    layers.TimeDistributed: _time_distributed,
    layers.Bidirectional: _bidirectional,
}
