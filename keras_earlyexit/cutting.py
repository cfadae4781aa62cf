"""Legal cuts: the places of a graph where exactly one tensor is alive."""

import dataclasses

import keras

from keras_earlyexit import surgery


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """A legal cut: behind `calls[index]` only `tensor` is alive."""

    name: str
    index: int
    tensor: keras.KerasTensor


def legal_cuts(graph):
    """Finds the places of a graph where exactly one tensor is alive.

    Alive are the tensors that a later call needs: inputs that are read later
    and masks that a later layer uses count too. The output itself is no cut.

    Args:
        graph: A `CallGraph` with one output.

    Returns:
        A tuple of `Cut` in the order in which they run.
    """
    last_use = {id(tensor): -1 for tensor in keras.tree.flatten(graph.inputs)}
    for index, call in enumerate(graph.calls):
        for tensor in (*call.inputs, *surgery.masks_read(call)):
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
        for tensor in (*call.outputs, *surgery.masks_made(call)):
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
        graph: A `CallGraph`.
        name: Name of an operation in it.

    Returns:
        A list of names of the inputs and operations whose tensors are alive,
        and the mask if one is; `None` if there is no operation of that name.
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
        for tensor in (*call.inputs, *surgery.masks_read(call))
    }
    read |= {id(tensor) for tensor in keras.tree.flatten(graph.outputs)}
    made = [(x.name, id(x)) for x in keras.tree.flatten(graph.inputs)]
    made += [(call.name, id(x)) for call in before for x in call.outputs]
    masks = {
        id(x): call.name for call in before for x in surgery.masks_made(call)
    }
    alive = [name for name, key in made if key in read and key not in masks]
    # Most layers hand on a mask of their own: only the last one is of interest.
    masked = [name for key, name in masks.items() if key in read]
    return alive + [f"the mask of {name}" for name in masked[-1:]]
