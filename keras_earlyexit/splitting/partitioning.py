"""Cuts a model with exits into segments, the parts of different machines.

A *cut* is right behind an exit. What crosses it is the exit's feature and,
where an objective has put refiners behind the exits, what they remember.
"""

import difflib

import keras

from keras_earlyexit import call_graph, surgery
from keras_earlyexit.exit_graph import (
    FINAL,
    FINAL_CONFIDENCE,
    confidence_name,
)
from keras_earlyexit.stages import FEATURE

MEMORY = "memory"


def partition(model, cuts):
    """Cuts a model with exits into segments that share its weights.

    With f_0, ..., f_c the segments, f_0 takes the model's inputs and every
    other one the `feature` of the segment before; each returns the keys of
    `model(x)` that belong to its exits. Merged, these dicts equal `model(x)`.

    Args:
        model: An `EarlyExitModel`.
        cuts: Names of early exits, in their order: `"exit_0"`, or
            `("exit_0", "exit_1")` for three segments. The segment that holds
            the exit ends with it.

    Returns:
        A tuple of functional Keras models, one more than there are cuts. Each
        returns a flat dict with the keys of its exits, and `feature`
        (batch, ...) but in the last. Where refiners remember something, the
        dict has `memory` (batch, m) too, and the next segment takes a dict of
        `feature` and `memory` in place of the feature.

    Raises:
        TypeError: If `model` has no exits, or `cuts` are no names.
        ValueError: If a name is unknown, is `final` or stands twice, or if
            the names are not in the order of the exits.

    Example:

    ```python
    edge, cloud = ee.partition(model, "exit_0")
    here = edge(x)
    there = cloud(here.pop("feature"))
    everything = {**here, **there}  # as model(x)
    ```
    """
    check_has_exits(model)
    return networks(model, cuts, model.uses_final_confidence)


def networks(model, cuts, with_final_confidence=True):
    """As `partition`, also with outputs that the model itself leaves out.

    Args:
        model: An `EarlyExitModel`.
        cuts: As in `partition`.
        with_final_confidence: Whether the last segment has the confidence of
            `final`, if that hangs on what it has.

    Returns:
        As `partition`.
    """
    return tuple(
        _segment(model, index, first, last, with_final_confidence)
        for index, (first, last) in enumerate(segment_bounds(model, cuts))
    )


def segment_bounds(model, cuts):
    """The first and the last stage of every segment.

    Args:
        model: An `EarlyExitModel`.
        cuts: As in `partition`.

    Returns:
        A tuple of tuples (first, last) of stage numbers.

    Raises:
        TypeError, ValueError: As `partition`.
    """
    check_has_exits(model)
    return bounds(model.exit_names, cuts)


def bounds(names, cuts):
    """As `segment_bounds`, from the names of all exits, `final` last."""
    ends = [_exit_index(name, names, cuts) for name in _as_names(cuts)]
    if len(set(ends)) < len(ends) or ends != sorted(ends):
        right = [names[end] for end in sorted(set(ends))]
        raise ValueError(
            "Expected every cut once, in the order of the exits. Received: "
            f"cuts={cuts!r}. Write cuts={right!r}."
        )
    return tuple(
        zip(
            [0, *(end + 1 for end in ends)],
            [*ends, len(names) - 1],
            strict=True,
        )
    )


def check_has_exits(model):
    """Raises a `TypeError` for what is no `EarlyExitModel`."""
    if not hasattr(model, "exit_graph"):
        raise TypeError(
            "Expected an EarlyExitModel, as `ee.add_exits` makes it. Received: "
            f"{model!r} (of type {type(model).__name__})."
        )


def _as_names(cuts):
    if isinstance(cuts, str):
        return [cuts]
    names = list(cuts) if isinstance(cuts, (list, tuple)) else [cuts]
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong or not names:
        raise TypeError(
            "Expected the name of an early exit, or a list with at least one. "
            f"Received: cuts={cuts!r} (of type {type(cuts).__name__}). Pass "
            "for example cuts='exit_0'."
        )
    return names


def _exit_index(name, names, cuts):
    early = names[:-1]
    if name in early:
        return early.index(name)
    if name == FINAL:
        raise ValueError(
            f"Expected cuts at early exits, one of {', '.join(early)}. "
            f"Received: cuts={cuts!r}. Behind {FINAL!r} nothing is left: the "
            "last segment ends with it anyway."
        )
    close = difflib.get_close_matches(name, early, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"Expected cuts at early exits, one of {', '.join(early)}. Received: "
        f"cuts={cuts!r}, in which {name!r} is unknown.{hint}"
    )


def _segment(model, index, first, last, with_final_confidence):
    exits = model.exit_graph
    graph = exits.graph
    outputs = {}
    for name in exits.names[first : last + 1]:
        outputs[name] = graph.outputs[name]
        if name != FINAL:
            outputs[confidence_name(name)] = graph.outputs[
                confidence_name(name)
            ]
        elif with_final_confidence and _is_behind(
            exits, first, FINAL_CONFIDENCE
        ):
            outputs[FINAL_CONFIDENCE] = graph.outputs[FINAL_CONFIDENCE]
    if last < len(exits.features):
        outputs[FEATURE] = exits.features[last]
        if exits.memories[last + 1] is not None:
            outputs[MEMORY] = exits.memories[last + 1]
    inputs, given = _inputs(exits, first)
    found = surgery.rerun(graph, given, list(outputs.values()))
    return keras.Model(
        inputs,
        dict(zip(outputs, found, strict=True)),
        name=f"{model.name}_segment_{index}",
    )


def _is_behind(exits, first, name):
    """Whether an output exists and hangs on nothing before stage `first`."""
    target = exits.graph.outputs.get(name)
    if target is None or first == 0:
        return target is not None
    feature = exits.features[first - 1]
    behind = call_graph.ancestors(exits.graph, [target], until={id(feature)})
    return not behind & call_graph.ancestors(exits.graph, [feature])


def _inputs(exits, first):
    """Inputs of a segment, and which tensors of the model they stand for."""
    if first == 0:
        inputs = keras.tree.map_structure(
            surgery.input_like, exits.graph.inputs
        )
        return inputs, call_graph.pairs(exits.graph.inputs, inputs)
    crossing = {FEATURE: exits.features[first - 1]}
    if exits.memories[first] is not None:
        crossing[MEMORY] = exits.memories[first]
    inputs = {
        name: surgery.input_like(tensor, name=name)
        for name, tensor in crossing.items()
    }
    given = call_graph.pairs(crossing, inputs)
    return inputs if len(inputs) > 1 else inputs[FEATURE], given
