"""From a network with exits to its stages and their costs.

The network is a functional model with a flat dict of outputs: `exit_0`,
`exit_0_confidence`, ..., `final`. Where its exits hang is read off the graph
itself, so that a loaded model needs no record of it.
"""

import collections.abc
import dataclasses
import warnings

import keras
import numpy as np

from keras_earlyexit import cost, opening, surgery
from keras_earlyexit.policies import Score

FINAL = "final"
FEATURE = "feature"
CARRY = "carry"


@dataclasses.dataclass(frozen=True, eq=False)
class ExitGraph:
    """A network taken apart at its exits.

    Args:
        graph: The network's `surgery.Graph`.
        names: Names of all exits, `final` last.
        features: The feature of each early exit, a `KerasTensor`.
        layers: Names of the operations that make these features.
        blocks: For each early exit the calls of its exit block, in order.
        backbone: The calls that `final` depends on, in order.
    """

    graph: surgery.Graph
    names: tuple
    features: tuple
    layers: tuple
    blocks: tuple
    backbone: tuple


FINAL_CONFIDENCE = f"{FINAL}_confidence"


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
    outputs = graph.outputs
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
    behind = surgery.ancestors(graph, [outputs[FINAL]])
    backbone = tuple(call for call in graph.calls if call in behind)
    plain = surgery.Graph(graph.inputs, outputs[FINAL], backbone)
    cuts = {id(cut.tensor): cut for cut in surgery.legal_cuts(plain)}
    features, layers, blocks = [], [], []
    for name in names[:-1]:
        heads = [outputs[name], outputs[confidence_name(name)]]
        calls = surgery.ancestors(graph, heads) - behind
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
        blocks=tuple(blocks),
        backbone=backbone,
    )


class Stages(collections.abc.Sequence):
    """The stages of a model, Keras models that share its weights.

    Built one by one when first used: a model that is only trained or saved
    never needs them. Not a list, so that Keras does not take them for parts
    of the model.

    Args:
        exits: An `ExitGraph`.
        policy: The `policies.Policy` whose score each stage computes.
        head: The model's `tasks.Head`.
        name: Name of the model, for the stages' names.
    """

    def __init__(self, exits, policy, head, name):
        self._exits = exits
        self._policy = policy
        self._head = head
        self._name = name
        self._built = [None] * len(exits.names)

    def __len__(self):
        return len(self._built)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if self._built[index] is None:
            self._built[index] = self._build(range(len(self))[index])
        return self._built[index]

    def _build(self, index):
        inputs, given, carry = self._inputs(index)
        graph, exit_name = self._exits.graph, self._exits.names[index]
        heads = graph.outputs
        if exit_name == FINAL:
            (prediction,) = surgery.rerun(graph, given, [heads[FINAL]])
            outputs = {"prediction": prediction}
        else:
            feature, prediction, confidence = surgery.rerun(
                graph,
                given,
                [
                    self._exits.features[index],
                    heads[exit_name],
                    heads[confidence_name(exit_name)],
                ],
            )
            outputs = {
                FEATURE: feature,
                "prediction": prediction,
                "confidence": confidence,
                **self._score(index, prediction, confidence, carry),
            }
        return keras.Model(inputs, outputs, name=f"{self._name}_stage_{index}")

    def _inputs(self, index):
        """Inputs of a stage, what they stand for, and the carry if any."""
        graph = self._exits.graph
        if index == 0:
            inputs = keras.tree.map_structure(surgery.input_like, graph.inputs)
            return inputs, surgery.pairs(graph.inputs, inputs), None
        feature = self._exits.features[index - 1]
        # A list, because Keras takes a tensor as well as a dict by name for it.
        inputs, carry = [surgery.input_like(feature, name=FEATURE)], None
        given = {id(feature): inputs[0]}
        carry_shape = self._policy.carry_shape(self._head.units)
        if carry_shape is not None:
            carry = keras.Input(carry_shape, name=CARRY)
            inputs.append(carry)
        return inputs, given, carry

    def _score(self, index, prediction, confidence, carry):
        layer = Score(
            self._policy,
            self._head,
            index,
            name=f"{self._exits.names[index]}_score",
        )
        found = layer(prediction, confidence, carry)
        if self._policy.carry_shape(self._head.units) is None:
            return {"score": found}
        return {"score": found[0], CARRY: found[1]}


def relative_costs(exits, convention="macs"):
    """Cost of leaving at each exit over the cost of the plain model.

    Args:
        exits: An `ExitGraph`.
        convention: `"macs"` counts every exit block on the way; `"eenets"`
            counts as the EENets authors do: the exit's own block only, as its
            dense layers, and 1 for `final`.

    Returns:
        `(costs, plain_macs)`: a float64 array (E + 1,) and an integer.

    Raises:
        ValueError: If the plain model has no MACs at all.
    """
    calls_of = exits.graph.calls
    complete = dict(zip(calls_of, opening.complete(calls_of), strict=True))

    def macs(calls):
        return sum(
            cost.call_cost(complete[call], convention).macs for call in calls
        )

    plain = macs(exits.backbone)
    if not plain:
        raise ValueError(
            "Expected a model with multiply-adds to relate the cost of an "
            "exit to. Received: a model in which no operation has any, or "
            "none that can be counted. Give its inputs a fixed shape."
        )
    eenets = convention == "eenets"
    reached, blocks = [], 0
    for feature, calls in zip(exits.features, exits.blocks, strict=True):
        behind = surgery.ancestors(exits.graph, [feature])
        if eenets:
            own = _dense_macs(complete[call] for call in calls)
        else:
            own = macs(calls)
        blocks = own if eenets else blocks + own
        reached.append(macs(behind) + blocks)
    reached.append(plain if eenets else plain + blocks)
    return np.asarray(reached, "float64") / plain, plain


def _dense_macs(calls):
    """MACs of the dense layers among calls, and inside composite layers."""
    total = 0
    for call in calls:
        inner = cost.inner_calls(call)
        if inner:
            total += _dense_macs(inner)
        elif isinstance(call.operation, keras.layers.Dense):
            total += cost.call_cost(call).macs
    return total
