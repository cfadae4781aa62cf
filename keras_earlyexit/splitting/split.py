"""Cuts a model with exits into segments that are trained apart."""

import dataclasses

import keras

from keras_earlyexit import objectives, policies, snapshots
from keras_earlyexit.splitting import partitioning
from keras_earlyexit.splitting.segments import Origin, SegmentModel


def split(model, cuts="exit_0", base="eenet_v2"):
    """Cuts a model into segments to be trained apart.

    Trained one behind the other, each on the features of the one before, they
    get the weights that `objective="hierarchical"` gives the whole model.

    Args:
        model: An `EarlyExitModel`.
        cuts: Names of the early exits that segments end with.
        base: Name, object or config of the objective of each segment.

    Returns:
        A tuple of `SegmentModel` that share the model's weights, one more
        than there are cuts. They are not compiled.

    Raises:
        TypeError: If `model` has no exits, or `cuts` are no names.
        ValueError: If a cut is unknown or in the wrong place, if the base
            looks beyond the exits of one segment, or if a layer would be in
            two segments.

    Example:

    ```python
    edge, cloud = ee.split(model, "exit_0")
    edge.compile("adam")
    cloud.compile("adam")
    learned = edge.learn(x, y)
    cloud.learn(learned.outputs["feature"], y)
    whole = ee.merge(edge, cloud)
    ```
    """
    partitioning.check_has_exits(model)
    _check_no_refiners(model)
    objective = objectives.get("hierarchical", cuts=cuts, base=base)
    objective = objective.for_head(model.head)
    # Refuses layers that would be in two segments.
    objective.groups(model)
    origin = _origin(model, objective)
    return tuple(
        SegmentModel(
            network,
            model.head,
            objective.base,
            origin,
            position,
            name=f"{model.name}_segment_{position}",
        )
        for position, network in enumerate(partitioning.networks(model, cuts))
    )


def _origin(model, objective):
    policy = model.policy
    if not model.has_given_policy and model.head.task != "regression":
        policy = policies.get(objective.policy)
    measured = model.measured_cost
    return Origin(
        name=model.name,
        network=model.net.name,
        exit_names=model.exit_names,
        cuts=objective.cuts,
        relative_costs=[float(cost) for cost in model.relative_costs],
        policy=keras.saving.serialize_keras_object(policy),
        has_given_policy=model.has_given_policy,
        cost=model.cost,
        measured_cost=measured and dataclasses.asdict(measured),
        weights_sha256=snapshots.weights_sha256(model.net.weights),
    )


def _check_no_refiners(model):
    found = [x.name for x in model.exit_graph.refiners if x is not None]
    if found:
        raise ValueError(
            "Expected a model whose exits are as `ee.add_exits` made them. "
            f"Received: one with the layers {found} of objective "
            f"{getattr(model.objective, 'name', None)!r} behind its exits. "
            "Compile it with objective='hierarchical' first."
        )
