"""The places that exits are searched for at, with a block at each of them."""

import numpy as np

from keras_earlyexit import building, placement
from keras_earlyexit.blocks import ExitBlock
from keras_earlyexit.model import EarlyExitModel

#: Beyond this share of the MACs an exit saves less than it is likely to cost.
DEEPEST = 0.97


def attach(model, candidates=12, block="pool", policy="max_probability"):
    """Hangs an exit block on every place that may be worth one.

    Args:
        model: A functional or `Sequential` Keras model, whose layers are
            shared.
        candidates: How many places at most, or a list of layer names.
        block: An exit block, or a list of them that are tried at each place.
        policy: How exits are scored.

    Returns:
        An `EarlyExitModel` to train and to observe.

    Raises:
        TypeError, ValueError: As in `ee.add_exits`, or if there is no place.
    """
    graph, head = building.opened(model)
    places = _places(graph, candidates)
    blocks = list(block) if isinstance(block, (list, tuple)) else [block]
    hanging, refusals = [], []
    for place in places:
        for one in blocks:
            refusal = _refusal(graph, head, place, one)
            if refusal is None:
                hanging.append((place, one))
            refusals.append(refusal)
    if not hanging:
        raise refusals[0]
    net = building.hang(graph, head, hanging, model.name)
    return EarlyExitModel(net, head, policy=policy, name=model.name)


def kinds_of(model):
    """The kind of each candidate's block, `"custom"` for a callable's."""
    found = []
    for calls in model.exit_graph.blocks:
        layers = [call.operation for call in calls]
        is_ours = len(layers) == 1 and isinstance(layers[0], ExitBlock)
        found.append(layers[0].kind if is_ours else "custom")
    return tuple(found)


def _refusal(graph, head, place, block):
    """Why a block cannot hang somewhere, or `None`."""
    try:
        building.hang(graph, head, [(place, block)], "trial")
    except ValueError as error:
        return error
    return None


def _places(graph, candidates):
    if not isinstance(candidates, (int, np.integer)) or candidates < 1:
        if isinstance(candidates, (list, tuple)) and candidates:
            return placement.place(graph, list(candidates))
        raise ValueError(
            "Expected `candidates` to be how many places are tried at most, "
            "at least 1, or a list of layer names. Received: "
            f"candidates={candidates!r} (of type {type(candidates).__name__})."
        )
    legal = [
        place
        for place in placement.candidates(graph)
        if 0 < place.fraction <= DEEPEST
    ]
    found = [place for place in legal if place.is_block_end] or legal
    if not found:
        raise ValueError(
            "Expected a model with a place for an exit: a legal cut, where "
            f"exactly one tensor is alive, with up to {DEEPEST:.0%} of the "
            f"multiply-adds in front of it. Received: a model of "
            f"{len(graph.calls)} operations with none. The best that there is "
            "is the model itself, at a relative cost of 1."
        )
    return _spread(found, int(candidates))


def _spread(places, most):
    """Of many places some that lie evenly over the MACs, both ends kept."""
    if len(places) <= most:
        return places
    fractions = np.array([place.fraction for place in places])
    chosen = []
    for target in np.linspace(fractions[0], fractions[-1], most):
        distance = np.abs(fractions - target)
        distance[chosen] = np.inf
        chosen.append(int(distance.argmin()))
    return [places[i] for i in sorted(chosen)]
