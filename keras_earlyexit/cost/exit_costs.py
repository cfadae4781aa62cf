"""What it costs to leave at each exit, over the plain model."""

import keras
import numpy as np

from keras_earlyexit import call_graph, cost
from keras_earlyexit.cost import opening


def relative_costs(exits, convention="macs"):
    """Cost of leaving at each exit over the cost of the plain model.

    Args:
        exits: An `exit_graph.ExitGraph`.
        convention: `"macs"` counts every exit block on the way; `"eenets"`
            counts as the EENets authors do: the exit's own block only, as its
            dense layers, and 1 for `final`.

    Returns:
        `(costs, plain_macs)`: a float64 array (E + 1,) and an integer.

    Raises:
        ValueError: If the plain model has no MACs at all.
    """
    macs, plain, complete = _counting(exits, convention)
    eenets = convention == "eenets"
    reached, blocks = [], 0
    *refiners, last = _refiner_calls(exits)
    for feature, calls, refiner in zip(
        exits.features, exits.blocks, refiners, strict=True
    ):
        behind = call_graph.ancestors(exits.graph, [feature])
        if eenets:
            own = _dense_macs(complete[call] for call in calls + refiner)
        else:
            own = macs(calls + refiner)
        blocks = own if eenets else blocks + own
        reached.append(macs(behind) + blocks)
    reached.append(plain if eenets else plain + blocks + macs(last))
    return np.asarray(reached, "float64") / plain, plain


def parts(exits):
    """What leads to each exit and what each exit block takes, apart.

    Args:
        exits: An `exit_graph.ExitGraph` without refiners.

    Returns:
        `(reached, blocks)`, float64 arrays (E,) in relative cost: the layers
        of the plain model up to each exit, and the exit's block.
    """
    macs, plain, _ = _counting(exits, "macs")
    reached = [
        macs(call_graph.ancestors(exits.graph, [feature]))
        for feature in exits.features
    ]
    blocks = [macs(calls) for calls in exits.blocks]
    return np.array(reached) / plain, np.array(blocks) / plain


def _counting(exits, convention):
    """What counts calls; what the plain model takes; calls taken apart."""
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
    return macs, plain, complete


def _refiner_calls(exits):
    """For each exit the calls of its refiner: none, or one."""
    return [
        tuple(call for call in exits.graph.calls if call.operation is refiner)
        for refiner in exits.refiners
    ]


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
