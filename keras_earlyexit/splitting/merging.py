"""Puts segments that were trained apart together again."""

import keras

from keras_earlyexit import call_graph, surgery
from keras_earlyexit.cost.measured import MeasuredCost
from keras_earlyexit.model import EarlyExitModel
from keras_earlyexit.splitting.segments import SegmentModel
from keras_earlyexit.stages import FEATURE


def merge(*segments):
    """Makes one model with exits of all segments of a cut model.

    The model's answers are those of the segments run one behind the other;
    its policy and costs are those that it had when it was cut.

    Args:
        *segments: All `SegmentModel`s of one `ee.split`, in their order.

    Returns:
        An `EarlyExitModel` that shares their weights. It is not compiled, and
        does not know which samples the segments were trained on.

    Raises:
        TypeError: If one of them is no `SegmentModel`.
        ValueError: If they are not the segments of one model, all of them and
            in their order.

    Example:

    ```python
    edge = keras.models.load_model("edge.keras")
    cloud = keras.models.load_model("cloud.keras")
    ee.merge(edge, cloud).save("model.keras")
    ```
    """
    _check(segments)
    inputs, crossing, outputs = None, None, {}
    for segment in segments:
        graph = surgery.trace(segment.net)
        if inputs is None:
            inputs = keras.tree.map_structure(surgery.input_like, graph.inputs)
            crossing = inputs
        found = surgery.rerun(
            graph,
            call_graph.pairs(graph.inputs, crossing),
            list(graph.outputs.values()),
        )
        found = dict(zip(graph.outputs, found, strict=True))
        crossing = found.pop(FEATURE, None)
        outputs.update(found)
    origin = segments[0].origin
    model = EarlyExitModel(
        keras.Model(inputs, outputs, name=origin.network),
        segments[0].head,
        policy=origin.policy,
        cost=origin.cost,
        name=origin.name,
    )
    model.set_policy(model.policy, given=origin.has_given_policy)
    if origin.measured_cost is not None:
        model.use_cost(MeasuredCost(**origin.measured_cost))
    return model


def _check(segments):
    for segment in segments:
        if not isinstance(segment, SegmentModel):
            raise TypeError(
                "Expected segments that `ee.split` made. Received: "
                f"{segment!r} (of type {type(segment).__name__}). Pass them "
                "one by one: `ee.merge(edge, cloud)`."
            )
    positions = [segment.position for segment in segments]
    wanted = list(range(len(segments[0].origin.cuts) + 1)) if segments else []
    if not segments or positions != wanted:
        raise ValueError(
            "Expected all segments of a model, in their order. Received: "
            f"{len(segments)} with the positions {positions}. Pass those with "
            f"the positions {wanted or '0, 1, ...'}."
        )
    first = segments[0].origin
    for segment in segments[1:]:
        if segment.origin != first:
            raise ValueError(
                "Expected segments of one model. Received: one of "
                f"{_shown(first)} and one of {_shown(segment.origin)}. Take "
                "those that were cut together."
            )


def _shown(origin):
    return (
        f"'{origin.name}' cut at {', '.join(origin.cuts)} (weights "
        f"{origin.weights_sha256[:12]})"
    )
