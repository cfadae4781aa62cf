"""When many edges call, drawn at random and the same for the same seed."""

import dataclasses

import numpy as np

from keras_earlyexit.cost.measured import count, count_from_0, positive, put

#: Calls of one play; their times are held in memory.
MAX_CALLS = 20_000_000


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The calls of edges that know nothing of each other.

    With `burst_factor=1` each edge calls as a Poisson process. Beyond, it is
    silent most of the time and calls so many times as often in between, in
    bursts whose lengths are drawn from an exponential distribution; the mean
    rate stays the same.

    Args:
        edges: Number of edges.
        calls_per_second: Mean rate of one edge.
        seconds: For how long they call.
        burst_factor: Rate within a burst over the mean rate, at least 1.
        burst_seconds: Mean length of a burst.
        seed: What is drawn follows from it; each edge draws by itself.

    Raises:
        TypeError, ValueError: If a value cannot be, or if it would be more
            than `MAX_CALLS` calls.

    Example:

    >>> times, edge = Traffic(edges=3, calls_per_second=2.0, seconds=5.0).draw()
    >>> bool((times[1:] >= times[:-1]).all()), set(edge.tolist()) <= {0, 1, 2}
    (True, True)
    """

    edges: int
    calls_per_second: float
    seconds: float
    burst_factor: float = 1.0
    burst_seconds: float = 1.0
    seed: int = 0

    def __post_init__(self):
        put(self, "edges", count)
        put(self, "seed", count_from_0)
        for name in (
            *("calls_per_second", "seconds"),
            *("burst_factor", "burst_seconds"),
        ):
            put(self, name, positive)
        if self.burst_factor < 1:
            raise ValueError(
                "Expected `burst_factor` to be at least 1, the rate within a "
                "burst over the mean rate. Received: "
                f"burst_factor={self.burst_factor!r}. 1 stands for no bursts."
            )
        if self.offered_per_second * self.seconds > MAX_CALLS:
            raise ValueError(
                f"Expected at most {MAX_CALLS} calls. Received: {self.edges} "
                f"edges with {self.calls_per_second:g} calls a second each "
                f"for {self.seconds:g} s. Take less time."
            )

    @property
    def offered_per_second(self):
        """Mean rate of all edges together."""
        return self.edges * self.calls_per_second

    def draw(self):
        """All calls in the order of time.

        Returns:
            `(times, edge)`: seconds from the start (n,), rising, and the
            number of the edge that calls (n,).
        """
        seeds = np.random.SeedSequence(self.seed).spawn(self.edges)
        each = [self._of_one(np.random.default_rng(seed)) for seed in seeds]
        edge = np.repeat(np.arange(self.edges), [len(times) for times in each])
        times = np.concatenate(each)
        order = np.argsort(times, kind="stable")
        return times[order], edge[order]

    def _of_one(self, rng):
        if self.burst_factor == 1:
            return _poisson(0.0, self.seconds, self.calls_per_second, rng)
        rate = self.calls_per_second * self.burst_factor
        silence = self.burst_seconds * (self.burst_factor - 1)
        # As if it had gone on for ever: in a burst or not, by their shares.
        calls = rng.random() < 1 / self.burst_factor
        found, now = [], 0.0
        while now < self.seconds:
            mean = self.burst_seconds if calls else silence
            end = min(now + rng.exponential(mean), self.seconds)
            if calls:
                found.append(_poisson(now, end, rate, rng))
            calls, now = not calls, end
        return np.concatenate(found) if found else np.zeros(0)


def _poisson(start, end, rate, rng):
    """Times of a Poisson process between two times."""
    number = rng.poisson(rate * (end - start))
    return np.sort(rng.uniform(start, end, number))
