"""Takes a functional Keras model apart and puts parts of it together again.

A model becomes a `CallGraph`: its calls of layers and `keras.ops` operations in
the order in which they run, nested models opened up. A part of the calls can
be run again on new tensors, which gives a sub-model that shares the weights.

Why calls and not layers: a layer may be called several times, and an operation
such as `x + y` is no layer. Everything that is not public in Keras (the nodes
behind a tensor, the functional model inside a `Sequential`, a tensor's mask)
is read in this file alone.
"""

import collections
import dataclasses
import inspect
import re
import tempfile
import warnings

import keras
from keras.src.models.functional import Functional

from keras_earlyexit import call_graph


def trace(model):
    """Lists the calls of a functional or `Sequential` model.

    Nested functional and `Sequential` models are opened up; two that use the
    same layer name for different layers cannot stand in one graph, so these
    stay one call each, with a warning. Nothing is computed, and no weight is
    made or changed.

    Args:
        model: A built functional or `Sequential` Keras model.

    Returns:
        A `CallGraph`.

    Raises:
        TypeError: If `model` has no graph of layers to look into.
        ValueError: If `model` is a `Sequential` without an input shape.

    Example:

    ```python
    names = [call.name for call in ee.surgery.trace(model).calls]
    ```
    """
    functional = _functional(model)
    if functional is None:
        raise _no_graph(model)
    graph = _read(functional)
    if not any(_can_open(call) for call in graph.calls):
        return graph
    closed = _name_clashes(graph)
    if closed:
        warnings.warn(
            "Nested models "
            f"{sorted(operation.name for operation in closed)} use the same "
            "layer names for different layers and stay one operation each: no "
            "exit can sit inside them. Give their layers different names to "
            "open them up.",
            stacklevel=2,
        )
    inputs = keras.tree.map_structure(input_like, functional.input)
    tensors = call_graph.pairs(functional.input, inputs)
    _run(graph.calls, tensors, closed=closed)
    outputs = keras.tree.map_structure(
        lambda tensor: tensors[id(tensor)], functional.output
    )
    flat = _read(keras.Model(inputs, outputs, name=model.name))
    for call in graph.calls:
        last = call_graph.producer(flat, tensors[id(call.outputs[0])])
        if last is not None and last.operation is not call.operation:
            flat.opened[call.name] = last.name
    return flat


def rerun(graph, tensors, targets):
    """Runs the calls that lead to some tensors again, from other tensors on.

    The operations are shared, so what comes out shares every weight.

    Args:
        graph: A `CallGraph`.
        tensors: Dict `id(tensor of graph) -> tensor that stands in for it`;
            calls in front of these are not run.
        targets: The tensors of the graph that are wanted.

    Returns:
        The list of tensors that stand in for `targets`.
    """
    tensors = dict(tensors)
    wanted = call_graph.ancestors(graph, targets, until=tensors)
    _run([call for call in graph.calls if call in wanted], tensors)
    return [tensors[id(target)] for target in targets]


def copy(graph, replace=None):
    """The same graph on copies of its layers, with the same state.

    Why not `keras.models.clone_model` and `set_weights`: a normalisation layer
    keeps what it has adapted to besides its weights, a layer of a nested model
    has to be registered, and so has the loss of a compiled model.

    Args:
        graph: A `CallGraph`.
        replace: Dict layer -> layer that stands in for it in place of a copy.

    Returns:
        A `CallGraph`.
    """
    copies, replace = {}, replace or {}
    for call in graph.calls:
        layer = call.operation
        if isinstance(layer, keras.Layer) and layer not in (*copies, *replace):
            copies[layer] = type(layer).from_config(layer.get_config())
    others = {**copies, **replace}
    inputs = keras.tree.map_structure(input_like, graph.inputs)
    tensors = call_graph.pairs(graph.inputs, inputs)
    calls = [
        dataclasses.replace(
            call, operation=others.get(call.operation, call.operation)
        )
        for call in graph.calls
    ]
    _run(calls, tensors, closed=None)
    for layer, its_copy in copies.items():
        _copy_state(layer, its_copy)
    outputs = keras.tree.map_structure(
        lambda tensor: tensors[id(tensor)], graph.outputs
    )
    copied = _read(keras.Model(inputs, outputs))
    return dataclasses.replace(copied, opened=graph.opened)


def reserve_names(graph):
    """Makes Keras' next automatic names differ from those in a graph.

    They count up within one process, so they may meet again in a model that
    comes from a file.
    """
    numbers = collections.defaultdict(int)
    for call in graph.calls:
        prefix, number = re.fullmatch(r"(.*?)(?:_(\d+))?", call.name).groups()
        numbers[prefix] = max(numbers[prefix], int(number or 0))
    for prefix, number in numbers.items():
        while keras.backend.get_uid(prefix) <= number:
            pass


def input_like(tensor, name=None):
    """A new `keras.Input` of the shape and type of a tensor."""
    return keras.Input(
        batch_shape=tensor.shape,
        dtype=tensor.dtype,
        sparse=tensor.sparse,
        name=name or tensor.name,
    )


def replace_layer(owner, name, layer):
    """Sets an attribute of a layer, so that it forgets the layer before.

    Args:
        owner: A Keras layer or model.
        name: Name of the attribute, a layer or `None` so far.
        layer: The layer to put there.
    """
    before = getattr(owner, name, None)
    if before is not None:
        owner._tracker.untrack(before)
    setattr(owner, name, layer)


def masks_made(call):
    """The masks that come with what a call gives."""
    masks = (getattr(tensor, "_keras_mask", None) for tensor in call.outputs)
    return tuple(mask for mask in masks if mask is not None)


def masks_read(call):
    """Masks of the call's inputs, if its operation looks at masks at all."""
    masks = [getattr(tensor, "_keras_mask", None) for tensor in call.inputs]
    masks = [mask for mask in masks if mask is not None]
    if not masks or not isinstance(call.operation, keras.Layer):
        return ()
    reads = any("mask" in name for name in _parameters(call.operation))
    # A layer that only hands the mask on keeps it alive for those behind it.
    return tuple(masks) if reads or masks_made(call) else ()


def _functional(model):
    """The functional model behind a model, or `None` where there is none."""
    if isinstance(model, keras.Sequential):
        if type(model).call is not keras.Sequential.call:
            return None
        return model._functional
    if isinstance(model, Functional):
        return model if type(model).call is Functional.call else None
    return None


def _no_graph(model):
    if (
        isinstance(model, keras.Sequential)
        and type(model).call is keras.Sequential.call
        and not model.built
    ):
        return ValueError(
            f"Sequential model '{model.name}' is not built: its input shape "
            "is unknown. Put `keras.Input(shape=...)` in front of its layers, "
            "or call `model.build((None, ...))` first."
        )
    return TypeError(
        "Expected a functional or Sequential Keras model. Received: "
        f"{model!r} (of type {type(model).__name__}). A model with a "
        "`call` of its own has no graph of layers to look into: build it with "
        "`keras.Model(inputs, outputs)`."
    )


def _read(functional):
    """The graph of a functional model as it stands, nested models closed."""
    calls = [
        _call(node)
        for depth in sorted(functional._nodes_by_depth, reverse=True)
        for node in functional._nodes_by_depth[depth]
        if not node.is_input
    ]
    return call_graph.CallGraph(
        inputs=functional.input, outputs=functional.output, calls=tuple(calls)
    )


def _run(calls, tensors, closed=(), training=None):
    """Runs calls on the stand-ins in `tensors` and adds their outputs to it."""

    def stand_in(leaf):
        if isinstance(leaf, keras.KerasTensor):
            return tensors[id(leaf)]
        return leaf

    for call in calls:
        args = keras.tree.map_structure(stand_in, call.args)
        kwargs = keras.tree.map_structure(stand_in, call.kwargs)
        if training is not None and "training" in getattr(
            call.operation, "_call_context_args", ()
        ):
            kwargs["training"] = training
        if closed is not None and _can_open(call, closed):
            outputs = _run_inside(call, args, kwargs, closed)
        else:
            outputs = call.operation(*args, **kwargs)
        for old, new in zip(
            call.outputs, keras.tree.flatten(outputs), strict=True
        ):
            tensors[id(old)] = new


def _run_inside(call, args, kwargs, closed):
    """Runs the calls of a nested model in place of the model."""
    functional = _functional(call.operation)
    tensors = {}
    given = _given(functional, args)
    for expected, tensor in zip(functional.inputs, given, strict=True):
        if tensor.dtype != expected.dtype:
            tensor = keras.ops.cast(tensor, expected.dtype)
        tensors[id(expected)] = tensor
    _run(_read(functional).calls, tensors, closed, kwargs.get("training"))
    return [tensors[id(tensor)] for tensor in functional.outputs]


def _can_open(call, closed=()):
    functional = _functional(call.operation)
    if functional is None or call.operation in closed:
        return False
    # A nested model changes the rank of its input (it squeezes or expands a
    # last axis of one) or reads a mask only where it is called as a whole.
    others = {**call.kwargs, "training": None}
    if len(call.args) != 1 or any(
        leaf is not None for leaf in keras.tree.flatten(others)
    ):
        return False
    given = _given(functional, call.args)
    return [len(tensor.shape) for tensor in given] == [
        len(tensor.shape) for tensor in functional.inputs
    ]


def _given(functional, args):
    """The tensors that a model is called on, in the order of its inputs."""
    (inputs,) = args
    if isinstance(inputs, dict) and not isinstance(functional.input, dict):
        inputs = [inputs[tensor.name] for tensor in functional.inputs]
    return [
        leaf
        for leaf in keras.tree.flatten(inputs)
        if isinstance(leaf, keras.KerasTensor)
    ]


def _name_clashes(graph):
    """Nested models that cannot all be opened up, because of equal names."""
    closed = set()
    while True:
        holders = collections.defaultdict(dict)
        _collect(graph.calls, None, closed, holders)
        clashing = {
            holder
            for owners in holders.values()
            if len(owners) > 1
            for holder in owners.values()
            if holder is not None
        }
        if not clashing:
            return closed
        closed |= clashing


def _collect(calls, holder, closed, holders):
    """Notes, per operation name, the operations and the model each is in."""
    for call in calls:
        if _can_open(call, closed):
            inner = _read(_functional(call.operation)).calls
            _collect(inner, call.operation, closed, holders)
        else:
            holders[call.name].setdefault(call.operation, holder)


def _parameters(operation):
    return inspect.signature(operation.call).parameters


def _copy_state(layer, its_copy):
    """Copies what a layer and those inside it keep, as saving does."""
    for old, new in zip(
        layer._flatten_layers(), its_copy._flatten_layers(), strict=True
    ):
        new.trainable = old.trainable
        if hasattr(old, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                old.save_assets(folder)
                new.load_assets(folder)
        variables = {}
        old.save_own_variables(variables)
        new.load_own_variables(
            {key: keras.ops.copy(value) for key, value in variables.items()}
        )


def record(layer, function, args, kwargs):
    """Runs a function on symbolic tensors and lists the calls in it.

    Nothing is computed, and the layer stays as it is: the notes that Keras
    makes of symbolic calls in whatever is called are deleted again, and a
    layer inside that is not built yet cannot be called.

    Args:
        layer: The operation whose layers `function` calls.
        function: A callable, such as `layer.call`.
        args: Its positional arguments, on tensors that nothing has made.
        kwargs: Its keyword arguments.

    Returns:
        A tuple of the `Call` behind the outputs, in an order in which they
        can run. What `function` raises comes through.
    """
    layers = getattr(layer, "_flatten_layers", list)()
    unbuilt = [x for x in layers if not x.built]
    inside = {layer, *layers}
    inside.update(*(getattr(x, "operations", ()) for x in inside))
    notes = [x._inbound_nodes for x in inside]
    notes += [x._outbound_nodes for x in inside]
    lengths = [len(nodes) for nodes in notes]
    try:
        for inner in unbuilt:
            # Building it would add weights; this makes the attempt fail.
            vars(inner)["_maybe_build"] = None
        # Whoever built the layer has seen its warnings.
        with keras.StatelessScope(), warnings.catch_warnings(action="ignore"):
            return _calls_behind(function(*args, **kwargs))
    finally:
        for inner in unbuilt:
            del vars(inner)["_maybe_build"]
        for nodes, length in zip(notes, lengths, strict=True):
            del nodes[length:]


def call_behind(tensor):
    """The call that made a tensor; `None` if there is none, or no note of it.

    Args:
        tensor: A symbolic tensor.

    Returns:
        A `Call`, equal but not identical to the one in a graph, or `None`.
    """
    node = _node_behind(tensor)
    return None if node is None else _call(node)


def _calls_behind(outputs):
    calls = {}
    stack = _nodes_behind(keras.tree.flatten(outputs))
    while stack:
        node = stack.pop()
        before = _nodes_behind(node.input_tensors)
        before = [other for other in before if other not in calls]
        if before:
            stack += [node, *before]
        else:
            calls.setdefault(node, _call(node))
    return tuple(calls.values())


def _nodes_behind(tensors):
    nodes = [_node_behind(tensor) for tensor in reversed(tensors)]
    return [node for node in nodes if node is not None]


def _node_behind(tensor):
    operation, index, _ = getattr(tensor, "_keras_history", (None, 0, 0))
    nodes = getattr(operation, "_inbound_nodes", ())[index : index + 1]
    # `record` deletes nodes: another one may have taken the place.
    if nodes and any(output is tensor for output in nodes[0].outputs):
        return nodes[0]
    return None


def _call(node):
    return call_graph.Call(
        operation=node.operation,
        args=node.arguments.args,
        kwargs=node.arguments.kwargs,
        outputs=tuple(node.outputs),
    )
