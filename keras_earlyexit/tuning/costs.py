"""What a search counts as cost: work, measured time or energy, a link.

A profile of a network with all candidates says how long each stage takes,
exit block included, and how long the plain model does. What the stages take
together beyond the plain model is the blocks'; it is shared out equally, but
no block gets more than half of its stage.
"""

import dataclasses

import numpy as np

from keras_earlyexit.cost import exit_costs
from keras_earlyexit.cost.measured import (
    Link,
    MeasuredCost,
    amount,
    instance,
    positive,
    put,
)
from keras_earlyexit.cost.profiles import DeviceProfile
from keras_earlyexit.planning import device_times, model_facts
from keras_earlyexit.planning.plans import CLOUD, EDGE, OBJECTIVES, one_of
from keras_earlyexit.tuning.problem import Costing


@dataclasses.dataclass(frozen=True)
class Split:
    """Two machines and a link, to search exits and the cut between them.

    Cost is the expected seconds, or bytes over the link, for one sample at a
    time, by the formulas of `ee.plan_cut`: samples that stay behind the cut go
    up as features and come back as answers.

    Args:
        edge: `DeviceProfile` of the model with all candidates at the edge.
        cloud: The same in the cloud.
        link: The `ee.cost.Link` between them.
        objective: What is counted, `"seconds"` or `"bytes"`.
        bytes_per_element: Bytes of a number of a feature on the link; `None`:
            as the model computes it.
        input_bytes: Bytes of a raw sample; `None`: one for each number.

    Raises:
        TypeError, ValueError: If a value is of another form.

    Example:

    ```python
    trained = ee.tuning.train_candidates(plain, x, y)
    edge = ee.cost.profile(trained)
    cost = ee.tuning.Split(edge, cloud, ee.cost.Link(10e6, 0.02))
    found = ee.tuning.search_exits(trained, x_search, y_search, cost=cost)
    ```
    """

    edge: DeviceProfile
    cloud: DeviceProfile
    link: Link
    objective: str = "seconds"
    bytes_per_element: float | None = None
    input_bytes: float | None = None

    def __post_init__(self):
        put(self, "edge", instance(DeviceProfile))
        put(self, "cloud", instance(DeviceProfile))
        put(self, "link", instance(Link))
        put(self, "objective", one_of(OBJECTIVES))
        if self.bytes_per_element is not None:
            put(self, "bytes_per_element", positive)
        if self.input_bytes is not None:
            put(self, "input_bytes", amount)


@dataclasses.dataclass(frozen=True, eq=False)
class SearchCosts:
    """What each candidate costs, in every way to run the network.

    Args:
        unit: Unit of cost, for reports.
        costings: Tuple of `problem.Costing`.
        plain: Cost of the plain model, all of it in one place.
        batch_size: Samples in a batch, for what was measured.
    """

    unit: str
    costings: tuple
    plain: float
    batch_size: float = 1


def read(model, cost):
    """The costs of a model with all candidates.

    Args:
        model: An `EarlyExitModel`.
        cost: `"macs"`, a `DeviceProfile` (milliseconds), a `MeasuredCost`, or
            a `Split`.

    Returns:
        `SearchCosts`.

    Raises:
        TypeError, ValueError: If it is of another kind, or of another model.
    """
    if isinstance(cost, str) and cost == "macs":
        prefix, blocks = exit_costs.parts(model.exit_graph)
        costing = Costing(prefix, blocks, 1.0)
        return SearchCosts("relative cost", (costing,), 1.0)
    if isinstance(cost, Split):
        return _of_split(model, cost)
    if not isinstance(cost, (DeviceProfile, MeasuredCost)):
        raise TypeError(
            "Expected `cost` to be 'macs', a DeviceProfile, a MeasuredCost or "
            f"an `ee.tuning.Split`. Received: cost={cost!r} (of type "
            f"{type(cost).__name__})."
        )
    before = model.measured_cost
    try:
        # Refuses what was measured of another model.
        model.use_cost(cost)
        measured = model.measured_cost
    finally:
        model.use_cost(model.cost if before is None else before)
    costing = _costing(np.diff(measured.exits, prepend=0.0), measured.plain)
    return SearchCosts(
        measured.unit, (costing,), measured.plain, measured.batch_size
    )


def _costing(steps, plain, **more):
    """Stages that follow each other, taken apart: (E + 1,) steps."""
    blocks = _blocks(steps, plain)
    segments = steps - np.append(blocks, 0.0)
    reached = np.cumsum(segments)
    return Costing(reached[:-1], blocks, float(reached[-1]), **more)


def _blocks(steps, plain):
    early = len(steps) - 1
    each = max(0.0, (steps.sum() - plain) / early)
    return np.minimum(each, steps[:-1] / 2)


def _of_split(model, split):
    facts = model_facts.read(model)
    edge, cloud = (
        _steps(device_times.matched(name, profile, facts), profile)
        for name, profile in (("edge", split.edge), ("cloud", split.cloud))
    )
    link, down = split.link, facts.answer_bytes
    ups = [
        cut.elements * (split.bytes_per_element or cut.element_bytes)
        + cut.other_bytes
        for cut in facts.cuts
    ]
    raw = split.input_bytes
    raw = facts.input_bytes if raw is None else raw

    def crossing(up):
        if split.objective == "bytes":
            return up + down
        return link.seconds(up + down)

    if split.objective == "bytes":
        nothing = np.zeros(len(facts.stage_names))
        edge = cloud = nothing, nothing[:-1]
    count = len(facts.cuts)
    costings = [_across(edge, cloud, count, 0.0, None, EDGE)]
    costings.append(_across(edge, cloud, -1, crossing(raw), None, CLOUD))
    costings += [
        _across(edge, cloud, k, crossing(ups[k]), k, facts.cuts[k].layer)
        for k in range(count)
    ]
    plain = [costing.final for costing in costings[:2]]
    return SearchCosts(split.objective, tuple(costings), min(plain))


def _steps(device, profile):
    """Seconds of each segment without its block, and of the blocks."""
    last = len(device.stage_names)
    steps = np.array([device.forward(k, k, 1) for k in range(last)])
    if profile.plain is not None:
        blocks = _blocks(steps, profile.at(profile.plain.seconds, 1))
    else:
        blocks = _blocks(steps, steps.sum())
    return steps - np.append(blocks, 0.0), blocks


def _across(edge, cloud, cut, crossing, required, label):
    """Costs with a cut behind candidate `cut`; -1: before all of them."""
    early = np.arange(len(edge[1]))
    there = np.arange(len(edge[0])) > cut
    steps = np.where(there, cloud[0], edge[0])
    if cut < len(early):
        # Whatever comes behind the cut has crossed the link.
        steps[cut + 1] += crossing
    reached = np.cumsum(steps)
    return Costing(
        prefix=reached[:-1],
        blocks=np.where(early > cut, cloud[1], edge[1]),
        final=float(reached[-1]),
        required=required,
        label=label,
    )
