"""What a layer does inside: its `call`, run on symbolic tensors.

A block written by a user is one operation in a model. To count what it costs,
its `call` runs on tensors without values, and the calls of layers and of
`keras.ops` behind the result are read off. That needs no weights and computes
nothing. Two things go wrong in plain Keras and are put right here while a
layer is open: `weight * tensor` raises where `tensor * weight` does not, and
`EinsumDense` forgets axes that its input determines.

Why so much care to put everything back: Keras notes each symbolic call in the
layer that was called, and counts up automatic names. Left there, these would
keep the tensors alive, and would change the names of layers made later.
"""

import contextlib
import functools
import inspect
import threading

import keras
from keras import layers
from keras.src.backend.common import global_state

from keras_earlyexit import surgery

_LOCK = threading.RLock()


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
    args, kwargs = _at_batch_size_one(call)
    for kind, parts_of_kind in _PARTS.items():
        # A subclass with a `call` of its own is opened like any other layer.
        if isinstance(operation, kind) and type(operation).call is kind.call:
            return parts_of_kind(operation, *args, **kwargs)
    if "training" in inspect.signature(operation.call).parameters:
        kwargs["training"] = False
    return 1, record(operation, operation.call, args, kwargs)


def record(operation, function, args, kwargs):
    """Runs a function on symbolic tensors and lists the calls in it.

    Args:
        operation: The operation whose layers `function` calls; they are left
            as they were.
        function: A callable.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Returns:
        A tuple of the `Call` behind the outputs, or `None` if the function
        does not run on symbolic tensors.
    """
    # Whatever a user's layer raises means the same: it cannot be opened.
    with contextlib.suppress(Exception), _undisturbed(operation):
        return _history(function(*args, **kwargs))


def complete(calls):
    """Fills in axes that Keras leaves open although the inputs tell them.

    Args:
        calls: A sequence of `Call`, in an order in which they can run.

    Returns:
        A tuple of as many `Call`: the same ones, or in their place calls of
        the same operations on tensors with more of their axes known.
    """
    known = {}
    found = []
    for call in calls:
        if has_unknown_shape(call) and (
            isinstance(call.operation, layers.EinsumDense)
            or any(id(tensor) in known for tensor in call.inputs)
        ):
            outputs = call.outputs
            call = _completed(call, known)
            known.update(zip(map(id, outputs), call.outputs, strict=True))
        found.append(call)
    return tuple(found)


def has_unknown_shape(call):
    """Whether an axis other than the batch axis has an unknown size."""
    tensors = (*call.inputs, *call.outputs)
    return any(None in tensor.shape[1:] for tensor in tensors)


def producer(tensor):
    """The `Call` that made a symbolic tensor, or `None` for an input."""
    # A tensor of an opened layer carries its call, for the layer forgets it.
    if hasattr(tensor, "produced_by"):
        return tensor.produced_by
    node = _node(tensor)
    return None if node is None else _call(node)


def _completed(call, known):
    def stand_in(leaf):
        return known.get(id(leaf), leaf)

    operation = call.operation
    args = keras.tree.map_structure(stand_in, call.args)
    kwargs = keras.tree.map_structure(stand_in, call.kwargs)
    with contextlib.suppress(Exception), _undisturbed(operation):
        outputs = operation.compute_output_spec(*args, **kwargs)
        outputs = tuple(keras.tree.flatten(outputs))
        return surgery.Call(operation, args, kwargs, outputs)
    return call


def _recurrent(layer, sequences, initial_state=None, **kwargs):
    def as_tensor(state):
        return keras.KerasTensor(state.shape, layer.compute_dtype)

    batch_size, steps, *features = sequences.shape
    step = keras.KerasTensor((batch_size, *features), layer.compute_dtype)
    states = keras.tree.map_structure(
        as_tensor, layer.get_initial_state(batch_size)
    )
    return steps, record(layer, layer.cell.call, (step, states), {})


def _time_distributed(layer, inputs, **kwargs):
    batch_size, steps, *features = inputs.shape
    step = keras.KerasTensor((batch_size, *features), inputs.dtype)
    return steps, record(layer, layer.layer, (step,), {})


def _bidirectional(layer, sequences, **kwargs):
    def both_ways(sequences):
        return layer.forward_layer(sequences), layer.backward_layer(sequences)

    return 1, record(layer, both_ways, (sequences,), {})


# Their `call` loops over the steps, out of sight of symbolic tensors.
_PARTS = {
    **dict.fromkeys(
        (
            layers.RNN,
            layers.SimpleRNN,
            layers.LSTM,
            layers.GRU,
            layers.ConvLSTM1D,
            layers.ConvLSTM2D,
            layers.ConvLSTM3D,
        ),
        _recurrent,
    ),
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

    args = keras.tree.map_structure(fresh, call.args)
    return args, keras.tree.map_structure(fresh, call.kwargs)


def _history(outputs):
    """The calls that tensors come from, in an order in which they can run."""
    calls, seen = [], set()
    stack = [(_node(x), False) for x in keras.tree.flatten(outputs)]
    while stack:
        node, inputs_are_done = stack.pop()
        if inputs_are_done:
            calls.append(_call(node))
            for tensor in node.outputs:
                tensor.produced_by = calls[-1]
        elif node is not None and id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack += [(_node(x), False) for x in reversed(node.input_tensors)]
    return tuple(calls)


def _node(tensor):
    operation, index, _ = getattr(tensor, "_keras_history", (None, 0, 0))
    return None if operation is None else operation._inbound_nodes[index]


def _call(node):
    arguments = node.arguments
    return surgery.Call(
        operation=node.operation,
        args=arguments.args,
        kwargs=arguments.kwargs,
        outputs=tuple(node.outputs),
    )


@contextlib.contextmanager
def _undisturbed(operation):
    """Leaves no trace of symbolic calls in an operation, its layers, Keras."""
    inside = {operation, *getattr(operation, "operations", ())}
    for layer in getattr(operation, "_flatten_layers", tuple)():
        inside |= {layer, *getattr(layer, "operations", ())}
    nodes = [x._inbound_nodes for x in inside]
    nodes += [x._outbound_nodes for x in inside]
    lengths = [len(list_of_nodes) for list_of_nodes in nodes]
    names = global_state.get_global_attribute("object_name_uids", {})
    names_before = dict(names)
    with _LOCK, keras.StatelessScope(), contextlib.ExitStack() as stack:
        stack.enter_context(_variables_give_way())
        for layer in inside:
            stack.enter_context(_open_layer(layer))
        try:
            yield
        finally:
            names.clear()
            names.update(names_before)
            for list_of_nodes, length in zip(nodes, lengths, strict=True):
                del list_of_nodes[length:]


@contextlib.contextmanager
def _open_layer(layer):
    replaced = {}
    if isinstance(layer, keras.Layer) and not layer.built:
        # Building it would add weights. One that is never called is no harm.
        replaced["_maybe_build"] = _refuse_to_build
    if isinstance(layer, layers.EinsumDense):
        replaced["compute_output_shape"] = functools.partial(
            _einsum_dense_shape, layer
        )
    vars(layer).update(replaced)
    try:
        yield
    finally:
        for name in replaced:
            del vars(layer)[name]


def _refuse_to_build(*args, **kwargs):
    raise RuntimeError("A layer that is not built cannot be opened.")


def _einsum_dense_shape(layer, input_shape):
    """The output shape, with the axes that the input alone determines."""

    def axes(term):
        before, _, after = term.strip().partition("...")
        found = {label: axis for axis, label in enumerate(before)}
        found.update((x, i - len(after)) for i, x in enumerate(after))
        return found

    operands, output = layer.equation.split("->")
    given = axes(operands.split(",")[0])
    shape = list(type(layer).compute_output_shape(layer, input_shape))
    for label, axis in axes(output).items():
        if shape[axis] is None and label in given:
            shape[axis] = input_shape[given[label]]
    return tuple(shape)


@contextlib.contextmanager
def _variables_give_way():
    """Leaves arithmetic of a variable with a symbolic tensor to the tensor."""

    def give_way(method):
        def binary(self, other):
            if isinstance(other, keras.KerasTensor):
                return NotImplemented
            return method(self, other)

        return binary

    kind = keras.Variable
    names = [
        f"__{name}__"
        for name in ("add", "sub", "mul", "truediv", "pow", "matmul")
    ]
    before = {name: vars(kind).get(name) for name in names}
    for name in names:
        setattr(kind, name, give_way(getattr(kind, name)))
    try:
        yield
    finally:
        for name, method in before.items():
            if method is None:
                delattr(kind, name)
            else:
                setattr(kind, name, method)
