"""How much traffic a worker can take, and what an answer costs."""

import dataclasses

from cloud_worker.capacity.simulation import simulate

_HOUR_S = 3600.0
_DEADLINES = 4
# Of what cores could do if they never waited, where a search begins.
_SURELY, _SURELY_NOT = 0.05, 2.0


@dataclasses.dataclass(frozen=True)
class Point:
    """A worker with a number of edges.

    Args:
        edges: How many.
        offered_per_second: Calls that they make.
        answered_per_second: Calls that are answered in time.
        in_time: Share of the calls that are.
        rejected: Share that is turned away.
        p50_s: Median time to an answer.
        p99_s: 99 % of the answers take at most so long.
        cores_used: Cores that are busy, on average.
        bottleneck: What is busy for the largest share of the time.
        cost_per_million: Price of a million answers, all cores paid whether
            they are busy or not; infinite without answers.
    """

    edges: int
    offered_per_second: float
    answered_per_second: float
    in_time: float
    rejected: float
    p50_s: float
    p99_s: float
    cores_used: float
    bottleneck: str
    cost_per_million: float


def point(setting, traffic, core_hour_price):
    """Simulates a worker with some traffic.

    Args:
        setting: A `Setting`.
        traffic: A `Traffic`.
        core_hour_price: What a core costs in an hour, in any currency.

    Returns:
        A `Point`.
    """
    found = simulate(setting, traffic)
    offered = max(found.offered, 1)
    rows = setting.service.rows * found.answered_per_second
    cost = float("inf")
    if rows:
        cost = 1e6 * setting.cores * core_hour_price / _HOUR_S / rows
    return Point(
        edges=traffic.edges,
        offered_per_second=found.offered / traffic.seconds,
        answered_per_second=found.answered_per_second,
        in_time=found.answered / offered,
        rejected=found.rejected / offered,
        p50_s=found.latency_s(0.5),
        p99_s=found.latency_s(0.99),
        cores_used=found.used["cores"] * setting.cores,
        bottleneck=found.bottleneck,
        cost_per_million=cost,
    )


def with_edges(setting, traffic, edges, calls):
    """Traffic of another number of edges, long enough to be seen.

    Args:
        setting: A `Setting`; a queue that grows shows after its deadline only.
        traffic: A `Traffic`.
        edges: How many.
        calls: About how many calls it is to have; more where that would be
            over too soon.

    Returns:
        A `Traffic`.
    """
    seconds = max(
        calls / (edges * traffic.calls_per_second),
        _DEADLINES * setting.deadline_s,
    )
    return dataclasses.replace(traffic, edges=edges, seconds=seconds)


def most_edges(setting, traffic, in_time=0.999):
    """The largest number of edges whose calls are answered in time.

    Found by bisection, to 2 %, over simulations that all have about as many
    calls as `traffic`.

    Args:
        setting: A `Setting`.
        traffic: A `Traffic`; its number of edges does not matter.
        in_time: Share of the calls that have to be answered in time.

    Returns:
        A `Traffic` with that number; `None` if one edge is too many.
    """
    calls = traffic.offered_per_second * traffic.seconds

    def fits(edges):
        play = with_edges(setting, traffic, edges, calls)
        found = simulate(setting, play)
        keeps_up = found.load <= 1
        return keeps_up and found.answered >= in_time * found.offered

    rate = setting.service.rows_per_core_second(setting.max_batch)
    ideal = setting.cores * rate / setting.service.rows

    low, high = (
        max(1, int(share * ideal / traffic.calls_per_second))
        for share in (_SURELY, _SURELY_NOT)
    )
    if not fits(low):
        low, high = 0, low
    while high - low > max(1, 0.02 * low):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return with_edges(setting, traffic, low, calls) if low else None
