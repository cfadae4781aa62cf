"""Where exits go: rules, names, fractions and callables.

A rule chooses among *block ends*; explicit names may be any legal cut. The
rules `pareto`, `fine`, `linear` and `golden` are the EENets authors': walk
over the block ends, and put the next exit where the cumulative MACs, exit
blocks not counted, reach its threshold.
"""

import dataclasses
import difflib
import numbers

import keras

from keras_earlyexit import call_graph, cutting, surgery
from keras_earlyexit import cost as cost_module
from keras_earlyexit.cost import opening

GOLDEN_RATIO = 1.61803398875
MERGES = frozenset(
    "add average concatenate dot hstack maximum minimum multiply stack "
    "subtract vstack where".split()
)


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """A legal cut with what it costs to get there.

    Args:
        name: Name of the layer or operation that the exit would hang on.
        index: Index of its call in the model's graph.
        tensor: The feature, a `KerasTensor`.
        macs: Cumulative MACs up to there, by the cost convention.
        fraction: The same over the MACs of the whole model.
        is_block_end: Whether placement rules may choose it.
    """

    name: str
    index: int
    tensor: object
    macs: int
    fraction: float
    is_block_end: bool


def _pareto(exits):
    return [1.0 - 0.8 ** (i + 1) for i in range(exits)]


def _fine(exits):
    return [1.0 - 0.95 ** (i + 1) for i in range(exits)]


def _linear(exits):
    return [(i + 1) / (exits + 1) for i in range(exits)]


def _golden(exits):
    return [GOLDEN_RATIO ** (i - exits) for i in range(exits)]


RULES = {
    "pareto": _pareto,
    "fine": _fine,
    "linear": _linear,
    "golden": _golden,
}


def candidates(model, cost="macs"):
    """Lists the legal cuts of a model with their cumulative cost.

    Args:
        model: A functional or `Sequential` Keras model, or its
            `call_graph.CallGraph`.
        cost: Cost convention, `"macs"` or `"eenets"`.

    Returns:
        A tuple of `Place`, in the order in which they run.

    Example:

    ```python
    for place in ee.placement.candidates(model):
        print(place.name, round(place.fraction, 3), place.is_block_end)
    ```
    """
    graph = (
        model
        if isinstance(model, call_graph.CallGraph)
        else surgery.trace(model)
    )
    calls = opening.complete(graph.calls)
    macs = [cost_module.call_cost(call, cost).macs for call in calls]
    weighted = [
        cost_module.call_cost(call).macs > 0 if cost != "macs" else count > 0
        for call, count in zip(calls, macs, strict=True)
    ]
    cuts = cutting.legal_cuts(graph)
    ends = _block_ends(graph, cuts, weighted)
    total = sum(macs)
    places = []
    done, position = 0, 0
    for cut in cuts:
        done += sum(macs[position : cut.index + 1])
        position = cut.index + 1
        places.append(
            Place(
                name=cut.name,
                index=cut.index,
                tensor=cut.tensor,
                macs=done,
                fraction=done / total if total else 0.0,
                is_block_end=cut.index in ends,
            )
        )
    return tuple(places)


def place(graph, exits, placement="pareto", cost="macs"):
    """Chooses the places of the exits.

    Args:
        graph: A `call_graph.CallGraph` with one output.
        exits: A count, a list of layer names, or a list of fractions of the
            model's MACs in (0, 1).
        placement: `"pareto"`, `"fine"`, `"linear"`, `"golden"`, `"even"`, or a
            callable that gets the block ends (a tuple of `Place`) and the
            count, and returns the names or the `Place`s to use.
        cost: Cost convention, `"macs"` or `"eenets"`.

    Returns:
        A list of `Place`, in the order in which they run.

    Raises:
        TypeError: If `exits` or `placement` is of no known kind.
        ValueError: If a place does not exist, cannot carry an exit, is named
            twice, or if there are not enough places.
    """
    places = candidates(graph, cost)
    if not places:
        raise ValueError(
            "Expected a model with at least one legal cut, a place where "
            "exactly one tensor is alive. Received: a model of "
            f"{len(graph.calls)} operations in which at every place two or "
            "more tensors are needed later (inputs and masks count), or which "
            "has only one operation. No exit can hang anywhere."
        )
    if isinstance(exits, bool) or not isinstance(
        exits, (numbers.Integral, list, tuple)
    ):
        raise TypeError(
            "Expected `exits` to be a count, a list of layer names, or a list "
            f"of fractions in (0, 1). Received: exits={exits!r} (of type "
            f"{type(exits).__name__})."
        )
    if isinstance(exits, numbers.Integral):
        return _by_rule(places, int(exits), placement)
    if not exits:
        raise ValueError("Expected at least one exit. Received: exits=[].")
    if all(isinstance(name, str) for name in exits):
        chosen = [_by_name(graph, places, name, exits) for name in exits]
    elif all(_is_number(number) for number in exits):
        chosen = _by_fraction(_block_end_places(places, exits), exits)
    else:
        raise TypeError(
            "Expected all of `exits` to be layer names or all to be fractions "
            f"in (0, 1). Received: exits={exits!r}."
        )
    return _sorted_once(chosen, exits)


def _by_rule(places, exits, placement):
    known = (*RULES, "even")
    if not callable(placement) and placement not in known:
        raise ValueError(
            f"Expected `placement` to be one of {', '.join(known)}, or a "
            f"callable. Received: placement={placement!r} (of type "
            f"{type(placement).__name__})."
        )
    if exits < 1:
        raise ValueError(
            f"Expected at least one exit. Received: exits={exits}."
        )
    ends = _block_end_places(places, exits)
    if exits > len(ends):
        raise _too_many(places, ends, exits)
    if callable(placement):
        return _by_callable(places, ends, exits, placement)
    if placement == "even":
        return [ends[len(ends) * (i + 1) // (exits + 1)] for i in range(exits)]
    chosen = _walk(ends, RULES[placement](exits))
    if len(chosen) < exits:
        raise ValueError(
            f"Placement {placement!r} found room for {len(chosen)} of {exits} "
            f"exits: the block ends of this model lie at "
            f"{_percentages(ends)} of its MACs. Ask for fewer exits, use "
            "placement='even', or give layer names."
        )
    return chosen


def _walk(ends, thresholds):
    """The authors' walk: at most one exit per block, in order."""
    chosen = []
    for end in ends:
        if len(chosen) == len(thresholds):
            break
        if end.fraction >= thresholds[len(chosen)]:
            chosen.append(end)
    return chosen


def _by_callable(places, ends, exits, placement):
    made = placement(ends, exits)
    names = {place.name: place for place in reversed(places)}
    chosen = []
    for item in made if isinstance(made, (list, tuple)) else ():
        if isinstance(item, Place):
            chosen.append(item)
        elif isinstance(item, str) and item in names:
            chosen.append(names[item])
    if not chosen or len(chosen) < len(made):
        raise ValueError(
            "Expected the `placement` callable to return a list of names of "
            f"legal cuts, or of places it was given. Received: {made!r} (of "
            f"type {type(made).__name__})."
        )
    return _sorted_once(chosen, [place.name for place in chosen])


def _by_fraction(ends, fractions):
    for fraction in fractions:
        if not 0.0 < fraction < 1.0:
            raise ValueError(
                "Expected fractions of the model's MACs strictly between 0 "
                f"and 1. Received: {fraction!r} in exits={list(fractions)!r}."
            )
    chosen = _walk(ends, sorted(fractions))
    if len(chosen) < len(fractions):
        raise ValueError(
            f"Found places for {len(chosen)} of the fractions "
            f"{list(fractions)!r}: the block ends of this model lie at "
            f"{_percentages(ends)} of its MACs, one exit each."
        )
    return chosen


def _by_name(graph, places, name, exits):
    # A nested model stands for the last layer inside it.
    name = graph.opened.get(name, name)
    for found in places:
        if found.name == name:
            return found
    if name in (tensor.name for tensor in keras.tree.flatten(graph.inputs)):
        raise ValueError(
            f"Layer {name!r} is an input: nothing is computed there yet. "
            f"Received: exits={list(exits)!r}. Choose one of: "
            f"{_near(name, places)}."
        )
    output = graph.calls[-1].name
    if name == output:
        raise ValueError(
            f"Layer {name!r} gives the model's own answer: that is the exit "
            f"'final' already. Received: exits={list(exits)!r}. Choose one of "
            f"the layers in front of it: {_near(name, places)}."
        )
    alive = cutting.tensors_alive(graph, name)
    if alive is None:
        raise ValueError(
            f"No layer {name!r} in this model. Received: "
            f"exits={list(exits)!r}. Did you mean: {_near(name, places)}?"
        )
    raise ValueError(
        f"Layer {name!r} cannot carry an exit: {len(alive)} tensors are alive "
        f"there ({', '.join(alive)}), a cut needs exactly one. Received: "
        f"exits={list(exits)!r}. Choose one of: "
        f"{_around(graph, places, name)}."
    )


def _sorted_once(chosen, exits):
    chosen = sorted(chosen, key=lambda place: place.index)
    for one, other in zip(chosen, chosen[1:], strict=False):
        if one.index == other.index:
            raise ValueError(
                f"Expected every exit at a place of its own. Received: "
                f"exits={list(exits)!r}, with two exits on {one.name!r}."
            )
    return chosen


def _block_ends(graph, cuts, weighted):
    """Indices of the calls behind which a block ends.

    The calls between two legal cuts are a span. A block is a span that merges
    branches and has MACs; where no span does, every span with MACs is one. A
    block ends with the last cut before the next span that has MACs.
    """
    spans = []
    start = 0
    for cut in cuts:
        inside = range(start, cut.index + 1)
        spans.append(
            (
                cut.index,
                any(weighted[i] for i in inside),
                any(_merges(graph.calls[i]) for i in inside),
            )
        )
        start = cut.index + 1
    merging = any(has_macs and merges for _, has_macs, merges in spans)
    ends = set()
    end = None
    for index, has_macs, merges in spans:
        if has_macs:
            if end is not None:
                ends.add(end)
            end = index if merges or not merging else None
        elif end is not None:
            end = index
    if end is not None and any(weighted[end + 1 :]):
        ends.add(end)
    return ends


def _merges(call):
    kind = type(call.operation).__name__.lower()
    return kind in MERGES and len({id(x) for x in call.inputs}) > 1


def _block_end_places(places, exits):
    ends = tuple(place for place in places if place.is_block_end)
    if not ends:
        raise ValueError(
            "Expected a model with block ends: layers with multiply-adds that "
            "can be counted, both before and behind a legal cut. Received: "
            f"exits={exits!r} for a model with none. If its inputs have open "
            f"axes, give them a fixed shape. {_cuts_by_name(places)}"
        )
    return ends


def _too_many(places, ends, exits):
    by_name = ""
    if len(places) > len(ends):
        by_name = f" {_cuts_by_name(places)}"
    return ValueError(
        f"Expected at most {len(ends)} exit{'s' * (len(ends) > 1)}, one for "
        f"each block end of this model (at {_percentages(ends)} of the MACs). "
        f"Received: exits={exits}. Ask for fewer exits.{by_name} Few places "
        "have exactly one tensor alive where blocks read several earlier "
        "blocks, or where a mask or a second input is needed to the end."
    )


def _cuts_by_name(places):
    shown = ", ".join(
        f"{place.name!r} ({place.fraction:.2%})" for place in _spread(places, 8)
    )
    return f"Exits given by name can hang on any legal cut: {shown}."


def _spread(places, count):
    if len(places) <= count:
        return places
    step = (len(places) - 1) / (count - 1)
    return [places[round(i * step)] for i in range(count)]


def _near(name, places):
    names = list(dict.fromkeys(place.name for place in places))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.3)
    return ", ".join(close or names[-3:])


def _around(graph, places, name):
    """The legal cuts just before and behind an operation."""
    index = max(i for i, call in enumerate(graph.calls) if call.name == name)
    before = [place.name for place in places if place.index < index][-2:]
    behind = [place.name for place in places if place.index > index][:2]
    return ", ".join([*before, *behind])


def _percentages(ends):
    shown = [f"{end.fraction:.1%}" for end in _spread(ends, 8)]
    return ", ".join(shown) + (" ..." if len(ends) > 8 else "")


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
