"""What a layer does inside: its `call`, run on symbolic tensors.

A block written by a user is one operation in a model. To count what it costs,
its `call` runs on tensors without values, and the calls of layers and of
`keras.ops` behind the result are read off. That computes nothing and leaves
the layer as it is.

Where Keras refuses to run a `call` on such tensors the layer stays closed: if
it leaves `keras.ops`, or multiplies its own weight from the left
(`self.scale * x`; `x * self.scale` can be opened).
"""

import contextlib
import inspect

import keras
from keras import layers

from keras_earlyexit import surgery


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
    args, kwargs = _at_batch_size_one(call)
    for kind, parts_of_kind in _PARTS.items():
        # A subclass with a `call` of its own is opened like any other layer.
        if isinstance(operation, kind) and type(operation).call is kind.call:
            times, function, *args = parts_of_kind(operation, *args, **kwargs)
            kwargs = {}
    if "training" in inspect.signature(function).parameters:
        kwargs["training"] = False
    # Whatever a user's layer raises means the same: it cannot be opened.
    with contextlib.suppress(Exception):
        return times, complete(
            surgery.record(operation, function, args, kwargs)
        )
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
    for call in calls:
        is_einsum = isinstance(call.operation, layers.EinsumDense)
        if has_unknown_shape(call) and (
            is_einsum or any(id(tensor) in known for tensor in call.inputs)
        ):
            args, kwargs = keras.tree.map_structure(
                lambda leaf: known.get(id(leaf), leaf), (call.args, call.kwargs)
            )
            infer = _einsum_output if is_einsum else _outputs
            outputs = infer(call.operation, *args, **kwargs)
            known |= surgery.pairs(call.outputs, outputs)
            call = surgery.Call(call.operation, args, kwargs, outputs)
        completed.append(call)
    return tuple(completed)


def has_unknown_shape(call):
    """Whether an axis other than the batch axis has an unknown size."""
    tensors = (*call.inputs, *call.outputs)
    return any(None in tensor.shape[1:] for tensor in tensors)


def _outputs(operation, *args, **kwargs):
    outputs = operation.compute_output_spec(*args, **kwargs)
    return tuple(keras.tree.flatten(outputs))


def _einsum_output(layer, inputs, **kwargs):
    # New tensors, for Keras notes in its inputs what was made of them.
    operands = [keras.KerasTensor(x.shape) for x in (inputs, layer.kernel)]
    shape = keras.ops.einsum(layer.equation, *operands).shape
    return (keras.KerasTensor(shape, layer.compute_dtype),)


def _recurrent(layer, sequences, initial_state=None, **kwargs):
    def as_tensor(state):
        return keras.KerasTensor(state.shape, layer.compute_dtype)

    batch_size, steps, *features = sequences.shape
    step = keras.KerasTensor((batch_size, *features), layer.compute_dtype)
    states = keras.tree.map_structure(
        as_tensor, layer.get_initial_state(batch_size)
    )
    return steps, layer.cell.call, step, states


def _time_distributed(layer, inputs, **kwargs):
    batch_size, steps, *features = inputs.shape
    step = keras.KerasTensor((batch_size, *features), inputs.dtype)
    return steps, layer.layer.__call__, step


def _bidirectional(layer, sequences, **kwargs):
    def both_ways(sequences):
        return layer.forward_layer(sequences), layer.backward_layer(sequences)

    return 1, both_ways, sequences


# Their `call` loops over the steps, out of sight of symbolic tensors.
_RECURRENT = "RNN SimpleRNN LSTM GRU ConvLSTM1D ConvLSTM2D ConvLSTM3D".split()
_PARTS = {
    **{getattr(layers, name): _recurrent for name in _RECURRENT},
    layers.TimeDistributed: _time_distributed,
    layers.Bidirectional: _bidirectional,
}


def _at_batch_size_one(call):
    """The arguments of a call, with new tensors of batch size 1 in place."""
    made = {}

    def fresh(leaf):
        if not isinstance(leaf, keras.KerasTensor):
            return leaf
        if id(leaf) not in made:
            dtype = leaf.dtype
            if "float" in dtype and getattr(call.operation, "autocast", False):
                dtype = call.operation.compute_dtype
            shape = tuple(1 if size is None else size for size in leaf.shape)
            made[id(leaf)] = keras.KerasTensor(shape, dtype)
        return made[id(leaf)]

    return keras.tree.map_structure(fresh, (call.args, call.kwargs))
