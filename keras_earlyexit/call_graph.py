"""A model as the list of its calls, and what can be asked of such a list."""

import dataclasses

import keras


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
class CallGraph:
    """The calls of a model in an order in which they can run.

    `inputs` and `outputs` keep the structure that the model has (a tensor, a
    list or a dict). Only calls that the outputs depend on are listed. `opened`
    is a dict from the name of a nested model to that of the call inside that
    gives its output.
    """

    inputs: object
    outputs: object
    calls: tuple
    opened: dict = dataclasses.field(default_factory=dict)


def ancestors(graph, targets, until=()):
    """The set of calls that some tensors depend on.

    Args:
        graph: A `CallGraph`.
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


def pairs(old, new):
    """Dict `id(old tensor) -> new tensor` of two equal structures."""
    return {
        id(before): after
        for before, after in zip(
            keras.tree.flatten(old), keras.tree.flatten(new), strict=True
        )
    }
