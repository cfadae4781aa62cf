"""What a cut costs a model: work and memory on each side, what crosses it."""

import dataclasses
import math
import re

import keras

from keras_earlyexit import call_graph, cost, cutting, surgery
from keras_earlyexit.cost import opening
from keras_earlyexit.exit_graph import (
    FINAL,
    FINAL_CONFIDENCE,
    confidence_name,
)


@dataclasses.dataclass(frozen=True)
class Segment:
    """What some calls of a model take, activations for one sample.

    Args:
        parameter_bytes: All weights, as they are stored.
        trainable_bytes: Those of them that are trained.
        activation_bytes: What every operation gives, kept until the gradient
            has come back.
        widest_bytes: The most that one operation reads and gives.
    """

    parameter_bytes: int
    trainable_bytes: int
    activation_bytes: int
    widest_bytes: int


@dataclasses.dataclass(frozen=True)
class CutFacts:
    """A legal cut.

    Args:
        name: Name of the exit, or of the operation behind which it is.
        layer: Name of the operation behind which it is.
        elements: Numbers that cross for a sample, as the codec sends them.
        element_bytes: Bytes of one of them as the model computes it.
        other_bytes: What crosses besides, such as the memory of refiners.
        edge: The `Segment` in front of it.
    """

    name: str
    layer: str
    elements: int
    element_bytes: float
    other_bytes: int
    edge: Segment


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """A model as a chain of stages with a legal cut behind each but the last.

    Args:
        name: Name of the model.
        stage_names: Names of the stages: (C + 1,).
        stage_macs: Multiply-adds of each for one sample: (C + 1,).
        has_exits: Whether the stages end with exits.
        cuts: A `CutFacts` for each cut: (C,).
        whole: The `Segment` of all stages.
        input_bytes: Bytes of a raw sample, one for each number where the
            model takes real numbers, which come from 8-bit data.
        answer_bytes: Bytes of the answer for one sample.
    """

    name: str
    stage_names: tuple
    stage_macs: tuple
    has_exits: bool
    cuts: tuple
    whole: Segment
    input_bytes: int
    answer_bytes: int


def read(model):
    """Reads off a model what a plan needs to know of it.

    Args:
        model: An `EarlyExitModel`, whose cuts are its exits, or a functional
            or `Sequential` model, whose cuts are all that are legal.

    Returns:
        A `ModelFacts`.

    Raises:
        TypeError: If `model` has no graph of layers.
        ValueError: If it has no legal cut, or a shape that is not known.
    """
    if hasattr(model, "exit_graph"):
        return _of_exits(model)
    graph = surgery.trace(model)
    cuts = cutting.legal_cuts(graph)
    if not cuts:
        raise ValueError(
            "Expected a model with at least one legal cut, a place where "
            f"exactly one tensor is alive. Received: '{model.name}', of "
            f"{len(graph.calls)} operations, which has none. It can only run "
            "in one place."
        )
    sides = [graph.calls[: cut.index + 1] for cut in cuts]
    return _facts(
        model.name,
        graph,
        [cut.name for cut in cuts],
        [*(cut.name for cut in cuts), FINAL],
        [*sides, graph.calls],
        [((cut.tensor,), cut.name) for cut in cuts],
        graph.outputs,
    )


def of_network(net):
    """The `Segment` that a functional model is as a whole."""
    graph = surgery.trace(net)
    complete = dict(
        zip(graph.calls, opening.complete(graph.calls), strict=True)
    )
    inputs = keras.tree.flatten(graph.inputs)
    return _segment(graph.calls, complete, inputs, net.name)


def _of_exits(model):
    exits = model.exit_graph
    graph = exits.graph
    sides = []
    for k in range(len(exits.names)):
        # The blocks of the exits in front are run as well.
        answers = [
            graph.outputs[key]
            for exit_ in exits.names[: k + 1]
            for key in (exit_, confidence_name(exit_))
            if key in graph.outputs and key != FINAL_CONFIDENCE
        ]
        wanted = call_graph.ancestors(
            graph, [*answers, *exits.features[k : k + 1]]
        )
        sides.append([call for call in graph.calls if call in wanted])
    crossing = [
        ((feature, *model.stages[k + 1].inputs[1:]), exits.layers[k])
        for k, feature in enumerate(exits.features)
    ]
    facts = _facts(
        model.name,
        graph,
        exits.names[:-1],
        exits.names,
        sides,
        crossing,
        graph.outputs[FINAL],
    )
    return dataclasses.replace(facts, has_exits=True)


def _facts(name, graph, cut_names, stage_names, sides, crossing, answer):
    complete = dict(
        zip(graph.calls, opening.complete(graph.calls), strict=True)
    )
    inputs = keras.tree.flatten(graph.inputs)
    cuts = []
    for cut, side, ((feature, *others), layer) in zip(
        cut_names, sides[:-1], crossing, strict=True
    ):
        cuts.append(
            CutFacts(
                name=cut,
                layer=layer,
                elements=_elements(feature, name),
                element_bytes=_item_bytes(feature.dtype),
                other_bytes=sum(_bytes(x, name) for x in others),
                edge=_segment(side, complete, inputs, name),
            )
        )
    macs = [
        sum(cost.call_cost(complete[call]).macs for call in side)
        for side in sides
    ]
    return ModelFacts(
        name=name,
        stage_names=tuple(stage_names),
        stage_macs=tuple(
            later - earlier
            for earlier, later in zip([0, *macs[:-1]], macs, strict=True)
        ),
        has_exits=False,
        cuts=tuple(cuts),
        whole=_segment(sides[-1], complete, inputs, name),
        input_bytes=sum(_raw_bytes(x, name) for x in inputs),
        answer_bytes=sum(_bytes(x, name) for x in keras.tree.flatten(answer)),
    )


def _segment(calls, complete, inputs, name):
    weights, trainable = {}, {}
    for call in calls:
        operation = call.operation
        weights |= {id(w): w for w in getattr(operation, "weights", ())}
        trainable |= {
            id(w): w for w in getattr(operation, "trainable_weights", ())
        }
    kept, widest = sum(_bytes(x, name) for x in inputs), 0
    for call in calls:
        counted = complete[call]
        given = sum(_bytes(x, name) for x in counted.outputs)
        read_ = sum(_bytes(x, name) for x in counted.inputs)
        # A block of layers keeps what each of those inside gives.
        inside = cost.inner_calls(counted)
        kept += max(
            given,
            sum(_bytes(x, name) for inner in inside for x in inner.outputs),
        )
        widest = max(widest, given + read_)
    return Segment(
        parameter_bytes=_weight_bytes(weights.values()),
        trainable_bytes=_weight_bytes(trainable.values()),
        activation_bytes=kept,
        widest_bytes=widest,
    )


def _weight_bytes(weights):
    return math.ceil(
        sum(math.prod(w.shape) * _item_bytes(w.dtype) for w in weights)
    )


def _bytes(tensor, name):
    return math.ceil(_elements(tensor, name) * _item_bytes(tensor.dtype))


def _raw_bytes(tensor, name):
    real = keras.backend.is_float_dtype(tensor.dtype)
    size = 1 if real else _item_bytes(tensor.dtype)
    return math.ceil(_elements(tensor, name) * size)


def _elements(tensor, name):
    shape = tensor.shape[1:]
    if None in shape:
        raise ValueError(
            "Expected a model whose shapes are known, but for the batch. "
            f"Received: '{name}' with a tensor '{tensor.name}' of shape "
            f"{tensor.shape}. Build the model with a fixed input shape."
        )
    return math.prod(shape)


def _item_bytes(dtype):
    bits = re.search(r"\d+", dtype)
    return int(bits.group()) / 8 if bits else 1
