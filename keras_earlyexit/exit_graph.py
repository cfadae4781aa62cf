"""A network with exits, taken apart at its exits.

The network is a functional model with a flat dict of outputs: `exit_0`,
`exit_0_confidence`, ..., `final`. Where its exits hang is read off the graph
itself, so that a loaded model needs no record of it.
"""

import dataclasses
import warnings

import keras

from keras_earlyexit import call_graph, cutting, refining, surgery

FINAL = "final"
FINAL_CONFIDENCE = f"{FINAL}_confidence"


@dataclasses.dataclass(frozen=True, eq=False)
class ExitGraph:
    """A network taken apart at its exits.

    Args:
        graph: The network's `call_graph.CallGraph`.
        names: Names of all exits, `final` last.
        features: The feature of each early exit, a `KerasTensor`.
        layers: Names of the operations that make these features.
        heads: E + 1 tuples (prediction, confidence) as the exit blocks and the
            model's own head give them; the last one's confidence is `None`.
        refiners: E + 1 layers behind these, or `None` each.
        memories: What each refiner reads of the one before, or `None`.
        blocks: For each early exit the calls of its exit block, in order.
        backbone: The calls that the model's own head depends on, in order.
    """

    graph: call_graph.CallGraph
    names: tuple
    features: tuple
    layers: tuple
    heads: tuple
    refiners: tuple
    memories: tuple
    blocks: tuple
    backbone: tuple


def confidence_name(exit_name):
    return f"{exit_name}_confidence"


def exit_name(index):
    return f"exit_{index}"


def read(net):
    """Takes a network with exits apart.

    Args:
        net: A functional Keras model with outputs `exit_0`,
            `exit_0_confidence`, ..., `final`.

    Returns:
        An `ExitGraph`.

    Raises:
        ValueError: If outputs are missing, or an exit does not hang on a legal
            cut.
    """
    with warnings.catch_warnings():
        # That a nested model stays closed is said where exits are added.
        warnings.filterwarnings("ignore", message="Nested models")
        graph = surgery.trace(net)
    names = _exit_names(graph.outputs)
    heads, refiners, memories = _heads(graph, names)
    final = heads[-1][0]
    behind = call_graph.ancestors(graph, [final])
    backbone = tuple(call for call in graph.calls if call in behind)
    plain = call_graph.CallGraph(graph.inputs, final, backbone)
    cuts = {id(cut.tensor): cut for cut in cutting.legal_cuts(plain)}
    features, layers, blocks = [], [], []
    for name, head in zip(names[:-1], heads[:-1], strict=True):
        calls = call_graph.ancestors(graph, head) - behind
        made = {id(tensor) for call in calls for tensor in call.outputs}
        read_here = {
            id(tensor): tensor
            for call in calls
            for tensor in call.inputs
            if id(tensor) not in made
        }
        if len(read_here) != 1 or not set(read_here) <= set(cuts):
            raise ValueError(
                f"Expected '{name}' to hang on one tensor behind which "
                "nothing else of the network is alive. Received: an exit that "
                f"reads {[tensor.name for tensor in read_here.values()]}."
            )
        (feature,) = read_here.values()
        features.append(feature)
        layers.append(cuts[id(feature)].name)
        blocks.append(tuple(call for call in graph.calls if call in calls))
    return ExitGraph(
        graph=graph,
        names=names,
        features=tuple(features),
        layers=tuple(layers),
        heads=heads,
        refiners=refiners,
        memories=memories,
        blocks=tuple(blocks),
        backbone=backbone,
    )


def network(exits, refiners=None, at_exit=None, name=None):
    """The network of an `ExitGraph` again, with something changed.

    Args:
        exits: An `ExitGraph`.
        refiners: E + 1 layers or `None`, in place of those that it has.
        at_exit: A function of an exit's index and its feature that returns two
            tensors like the feature: what the exit block reads, and what the
            rest of the network does.
        name: Name of the network.

    Returns:
        A functional Keras model that shares the layers.
    """
    graph = exits.graph
    if refiners is None:
        refiners = exits.refiners
    heads = exits.heads
    confidence = graph.outputs.get(FINAL_CONFIDENCE)
    if at_exit is not None:
        heads, confidence = _rerun(exits, at_exit, confidence)
    outputs = {}
    for exit_, (prediction, leaves) in zip(
        exits.names, refining.refine(refiners, heads), strict=True
    ):
        outputs[exit_] = prediction
        if leaves is not None:
            outputs[confidence_name(exit_)] = leaves
    if confidence is not None:
        outputs[FINAL_CONFIDENCE] = confidence
    return keras.Model(graph.inputs, outputs, name=name)


def _rerun(exits, at_exit, confidence):
    """Heads of the network, with its features changed on the way."""
    graph = exits.graph
    known = call_graph.pairs(graph.inputs, graph.inputs)
    heads = []
    for i, feature in enumerate(exits.features):
        (tensor,) = surgery.rerun(graph, known, [feature])
        here, onward = at_exit(i, tensor)
        heads.append(
            tuple(surgery.rerun(graph, {id(feature): here}, exits.heads[i]))
        )
        known = {id(feature): onward}
    wanted = [exits.heads[-1][0]]
    if confidence is not None:
        wanted.append(confidence)
    final, *others = surgery.rerun(graph, known, wanted)
    return [*heads, (final, None)], (others[0] if others else None)


def _exit_names(outputs):
    if not isinstance(outputs, dict) or exit_name(0) not in outputs:
        raise ValueError(
            "Expected a functional model with a dict of outputs `exit_0`, "
            "`exit_0_confidence`, ..., `final`. Received: a model with "
            f"outputs {outputs}."
        )
    count = 0
    while exit_name(count) in outputs:
        count += 1
    names = (*(exit_name(i) for i in range(count)), FINAL)
    wanted = [FINAL, *(confidence_name(name) for name in names[:-1])]
    missing = [name for name in wanted if name not in outputs]
    if missing:
        raise ValueError(
            f"Expected an output for each of {wanted}. Received: outputs "
            f"{sorted(outputs)}; missing are {missing}."
        )
    return names


def _heads(graph, names):
    """What the exits answer in front of their refiners, these, and memories."""
    heads, refiners, memories = [], [], []
    for name in names:
        prediction = graph.outputs[name]
        confidence = None
        if name != FINAL:
            confidence = graph.outputs[confidence_name(name)]
        call = call_graph.producer(graph, prediction)
        refiner = call.operation if call is not None else None
        memory = None
        if isinstance(refiner, refining.Refiner):
            prediction = call.args[0]
            confidence = call.kwargs["confidence"]
            memory = call.kwargs["memory"]
        else:
            refiner = None
        heads.append((prediction, confidence))
        refiners.append(refiner)
        memories.append(memory)
    return tuple(heads), tuple(refiners), tuple(memories)
