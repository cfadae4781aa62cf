"""Takes a functional Keras model apart and puts parts of it together again.

A model becomes a `Graph`: its calls of layers and `keras.ops` operations in
the order in which they run, nested models opened up. Two things are done with
it: finding the *legal cuts*, the places where exactly one tensor is alive, and
running a part of the calls again on new tensors, which gives a sub-model that
shares the weights.

Why calls and not layers: a layer may be called several times, and an operation
such as `x + y` is no layer. Everything that is not public in Keras (the nodes
behind a tensor, the functional model inside a `Sequential`, a tensor's mask)
is read in this file alone.
"""

import collections
import dataclasses
import inspect
import warnings

import keras
from keras.src.models.functional import Functional


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of one operation, with the symbolic tensors it was called on."""

    operation: keras.Operation
    args: tuple
    kwargs: dict
    outputs: tuple

    @property
    def name(self):
        return self.operation.name

    @property
    def inputs(self):
        """The tensors among the arguments, in order."""
        return tuple(
            leaf
            for leaf in keras.tree.flatten((self.args, self.kwargs))
            if isinstance(leaf, keras.KerasTensor)
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """The calls of a model in an order in which they can run.

    `inputs` and `outputs` keep the structure that the model has (a tensor, a
    list or a dict). Only calls that the outputs depend on are listed.
    """

    inputs: object
    outputs: object
    calls: tuple


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """A legal cut: behind `calls[index]` only `tensor` is alive."""

    name: str
    index: int
    tensor: keras.KerasTensor


def trace(model):
    """Lists the calls of a functional or `Sequential` model.

    Nested functional and `Sequential` models are opened up; two that use the
    same layer name for different layers cannot stand in one graph, so these
    stay one call each, with a warning. Nothing is computed, and no weight is
    made or changed.

    Args:
        model: A built functional or `Sequential` Keras model.

    Returns:
        A `Graph`.

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
    tensors = pairs(functional.input, inputs)
    _run(graph.calls, tensors, closed=closed)
    outputs = keras.tree.map_structure(
        lambda tensor: tensors[id(tensor)], functional.output
    )
    return _read(keras.Model(inputs, outputs, name=model.name))


def legal_cuts(graph):
    """Finds the places of a graph where exactly one tensor is alive.

    Alive are the tensors that a later call needs: inputs that are read later
    and masks that a later layer uses count too. The output itself is no cut.

    Args:
        graph: A `Graph` with one output.

    Returns:
        A tuple of `Cut` in the order in which they run.
    """
    last_use = {id(tensor): -1 for tensor in keras.tree.flatten(graph.inputs)}
    for index, call in enumerate(graph.calls):
        for tensor in (*call.inputs, *_masks_read(call)):
            last_use[id(tensor)] = index
    for tensor in keras.tree.flatten(graph.outputs):
        last_use[id(tensor)] = len(graph.calls)
    alive = {
        id(tensor): tensor
        for tensor in keras.tree.flatten(graph.inputs)
        if last_use[id(tensor)] >= 0
    }
    cuts = []
    for index, call in enumerate(graph.calls[:-1]):
        for tensor in (*call.outputs, *_masks_made(call)):
            alive[id(tensor)] = tensor
        alive = {
            key: tensor
            for key, tensor in alive.items()
            if last_use.get(key, -1) > index
        }
        if len(alive) == 1:
            (tensor,) = alive.values()
            cuts.append(Cut(name=call.name, index=index, tensor=tensor))
    return tuple(cuts)


def tensors_alive(graph, name):
    """Says what is alive behind the last call of an operation, for messages.

    Args:
        graph: A `Graph`.
        name: Name of an operation in it.

    Returns:
        A list of names of the operations whose outputs (or masks) are alive,
        or `None` if there is no operation of that name.
    """
    positions = [i for i, call in enumerate(graph.calls) if call.name == name]
    if not positions:
        return None
    before, after = (
        graph.calls[: positions[-1] + 1],
        graph.calls[positions[-1] + 1 :],
    )
    read = {
        id(tensor)
        for call in after
        for tensor in (*call.inputs, *_masks_read(call))
    }
    read |= {id(tensor) for tensor in keras.tree.flatten(graph.outputs)}
    alive = [
        tensor.name
        for tensor in keras.tree.flatten(graph.inputs)
        if id(tensor) in read
    ]
    for call in before:
        alive += [call.name for tensor in call.outputs if id(tensor) in read]
        alive += [
            f"the mask of {call.name}"
            for tensor in _masks_made(call)
            if id(tensor) in read
        ]
    return alive


def rerun(graph, tensors, targets):
    """Runs the calls that lead to some tensors again, from other tensors on.

    The operations are shared, so what comes out shares every weight.

    Args:
        graph: A `Graph`.
        tensors: Dict `id(tensor of graph) -> tensor that stands in for it`;
            calls in front of these are not run.
        targets: The tensors of the graph that are wanted.

    Returns:
        The list of tensors that stand in for `targets`.
    """
    tensors = dict(tensors)
    wanted = ancestors(graph, targets, until=tensors)
    _run([call for call in graph.calls if call in wanted], tensors)
    return [tensors[id(target)] for target in targets]


def ancestors(graph, targets, until=()):
    """The set of calls that some tensors depend on.

    Args:
        graph: A `Graph`.
        targets: Tensors of the graph.
        until: Ids of tensors behind which the search does not go.

    Returns:
        A set of `Call`.
    """
    needed = {id(tensor) for tensor in targets} - set(until)
    found = set()
    for call in reversed(graph.calls):
        if any(id(tensor) in needed for tensor in call.outputs):
            found.add(call)
            needed |= {id(tensor) for tensor in call.inputs} - set(until)
    return found


def producer(graph, tensor):
    """The call that makes a tensor, or `None` for an input."""
    for call in graph.calls:
        if any(output is tensor for output in call.outputs):
            return call
    return None


def input_like(tensor, name=None):
    """A new `keras.Input` of the shape and type of a tensor."""
    return keras.Input(
        batch_shape=tensor.shape,
        dtype=tensor.dtype,
        sparse=tensor.sparse,
        name=name or tensor.name,
    )


def pairs(old, new):
    """Dict `id(old tensor) -> new tensor` of two equal structures."""
    return {
        id(before): after
        for before, after in zip(
            keras.tree.flatten(old), keras.tree.flatten(new), strict=True
        )
    }


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
    if isinstance(model, keras.Sequential):
        return ValueError(
            f"Sequential model '{model.name}' is not built: its input shape "
            "is unknown. Put `keras.Input(shape=...)` in front of its layers, "
            "or call `model.build((None, ...))` first."
        )
    return TypeError(
        "Expected a functional or Sequential Keras model. Received: "
        f"{model!r} (of type {type(model).__name__}). A subclassed model has "
        "no graph of layers to look into: build it with "
        "`keras.Model(inputs, outputs)`."
    )


def _read(functional):
    """The graph of a functional model as it stands, nested models closed."""
    calls = []
    for depth in sorted(functional._nodes_by_depth, reverse=True):
        for node in functional._nodes_by_depth[depth]:
            if node.is_input:
                continue
            calls.append(
                Call(
                    operation=node.operation,
                    args=node.arguments.args,
                    kwargs=node.arguments.kwargs,
                    outputs=tuple(node.outputs),
                )
            )
    return Graph(
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
        if training is not None and _accepts(call.operation, "training"):
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
    given = keras.tree.flatten((args, kwargs))
    given = [leaf for leaf in given if isinstance(leaf, keras.KerasTensor)]
    tensors = {}
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
    others = set(call.kwargs) - {"training"}
    return not others and [len(tensor.shape) for tensor in call.inputs] == [
        len(tensor.shape) for tensor in functional.inputs
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


def _masks_made(call):
    masks = (getattr(tensor, "_keras_mask", None) for tensor in call.outputs)
    return tuple(mask for mask in masks if mask is not None)


def _masks_read(call):
    """Masks of the call's inputs, if its operation looks at masks at all."""
    masks = [getattr(tensor, "_keras_mask", None) for tensor in call.inputs]
    masks = [mask for mask in masks if mask is not None]
    if not masks or not isinstance(call.operation, keras.Layer):
        return ()
    reads = any("mask" in name for name in _parameters(call.operation))
    # A layer that only hands the mask on keeps it alive for those behind it.
    return tuple(masks) if reads or _masks_made(call) else ()


def _accepts(operation, name):
    return name in _parameters(operation)


def _parameters(operation):
    return inspect.signature(operation.call).parameters
