"""A cloud worker with many edges, event by event, on a clock of its own.

Requests go through what they go through in reality: the edge's own link, the
cloud's connection that all share, the event loop that receives and decodes, the
queue, the stages, and back. The queue is the one that the worker runs
(`cloud_worker.batching.Queue`), on the simulated clock: which requests run
together and which are turned away is not modelled but done.

The event loop and each batch in the stages work on a core of their own while
there are enough. Where there are not, the event loop goes first, as threads do
that work in short pieces, and the stages share what is left: no core is idle
while there is work.
"""

import dataclasses

import numpy as np
import simpy

from cloud_worker.batching import Item, Queue
from protos.errors import DeadlinePassed, Overloaded

# Of the work of a call outside the stages, what is done before it waits: calls
# that were refused took a quarter to a third of the processor time.
_RECEIVING = 1 / 3
_TICK_S = 1e-6


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is simulated besides the traffic.

    Args:
        service: A `Service`.
        deadline_s: Seconds that an edge waits for an answer.
        cores: Cores that the worker has.
        max_batch: As of `cloud-worker serve`.
        max_queue: As of `cloud-worker serve`.
        max_delay_s: As of `cloud-worker serve`, in seconds.
        workers: As of `cloud-worker serve`: batches at the same time.
        link: `ee.cost.Link` of each edge.
        shared_bits_per_second: What the cloud's own connection carries.
    """

    service: object
    deadline_s: float = 2.0
    cores: int = 1
    max_batch: int = 64
    max_queue: int = 1024
    max_delay_s: float = 0.0
    workers: int = 2
    link: object = None
    shared_bits_per_second: float = float("inf")


@dataclasses.dataclass(frozen=True)
class Simulated:
    """What became of the calls.

    Args:
        offered: Calls that were made.
        answered: Calls that were answered in time.
        answered_meanwhile: Those of them answered while calls were made.
        rejected: Calls that were turned away.
        past_deadline: Calls whose answer did not come in time.
        in_flight: Calls that were still open when the time was over.
        seconds: For how long calls were made.
        latencies: Seconds of each answer in time, an array.
        waits: Seconds in the queue of each call that ran, an array.
        batch_rows: Samples of each batch that ran, an array.
        used: Dict of shares of the time that something was busy: `shared
            link`, `event loop`, `stages`, `cores`.
        lasted: Seconds until the last of them was done.
    """

    offered: int
    answered: int
    answered_meanwhile: int
    rejected: int
    past_deadline: int
    in_flight: int
    seconds: float
    latencies: np.ndarray
    waits: np.ndarray
    batch_rows: np.ndarray
    used: dict
    lasted: float

    @property
    def load(self):
        """Time that what is busiest was needed, over that of the calls.

        Above 1 it falls behind, however long it takes until that shows.
        """
        return max(self.used.values()) * self.lasted / self.seconds

    @property
    def answered_per_second(self):
        """Calls answered in time, while calls were made."""
        return self.answered_meanwhile / self.seconds

    def latency_s(self, quantile):
        """A quantile of the time to an answer; NaN without any."""
        if not len(self.latencies):
            return float("nan")
        return float(np.quantile(self.latencies, quantile))

    @property
    def bottleneck(self):
        """What was busy for the largest share of the time."""
        return max(self.used, key=self.used.get)


def simulate(setting, traffic, until_s=None):
    """Plays traffic against a simulated worker.

    Args:
        setting: A `Setting`.
        traffic: A `Traffic`.
        until_s: When to stop; `None` waits for what is in flight.

    Returns:
        A `Simulated`.

    Example:

    ```python
    service = Service.load("service.json")
    traffic = Traffic(edges=500, calls_per_second=0.5, seconds=60)
    print(simulate(Setting(service), traffic).answered_per_second)
    ```
    """
    return _Run(setting, traffic).run(until_s)


class _Run:
    def __init__(self, setting, traffic):
        self._setting, self._traffic = setting, traffic
        self._service = setting.service
        self._env = simpy.Environment()
        self._loop = simpy.Resource(self._env)
        self._cores = _Cores(self._env, setting.cores)
        self._queue = Queue(
            setting.max_queue,
            setting.max_batch,
            setting.max_delay_s,
            clock=lambda: self._env.now,
            # What is told to those who are turned away plays no part here.
            spread=lambda: 0.0,
        )
        self._free = setting.workers
        self._looks = 0
        # Until when each edge's link, and the one that all share, is busy.
        self._busy_until = np.zeros(traffic.edges + 1)
        self._rejected = self._late = self._offered = self._meanwhile = 0
        self._latencies, self._waits, self._batches = [], [], []
        self._busy = dict.fromkeys(("shared link", "event loop", "stages"), 0.0)

    def run(self, until_s):
        self._env.process(self._calls())
        self._env.run(until_s)
        seconds = self._traffic.seconds
        # What is left over when calls end is worked off behind it.
        lasted = max(seconds, self._env.now)
        setting = self._setting
        used = {name: float(x / lasted) for name, x in self._busy.items()}
        used["cores"] = (used["event loop"] + used["stages"]) / setting.cores
        used["stages"] /= setting.workers
        answered = len(self._latencies)
        return Simulated(
            offered=self._offered,
            answered=answered,
            answered_meanwhile=self._meanwhile,
            rejected=self._rejected,
            past_deadline=self._late,
            in_flight=self._offered - answered - self._rejected - self._late,
            seconds=seconds,
            latencies=np.array(self._latencies),
            waits=np.array(self._waits),
            batch_rows=np.array(self._batches, "int64"),
            used=used,
            lasted=float(lasted),
        )

    def _calls(self):
        for at, edge in zip(*self._traffic.draw(), strict=True):
            yield self._env.timeout(at - self._env.now)
            self._offered += 1
            self._env.process(self._call(int(edge)))

    def _call(self, edge):
        env, service = self._env, self._service
        deadline = env.now + self._setting.deadline_s
        began = env.now
        yield env.timeout(self._up_s(edge))
        yield from self._in_loop(_RECEIVING * service.call_seconds)
        item = Item((), service.rows, deadline, env.event())
        try:
            self._drop(self._queue.add(item))
        except Overloaded:
            self._rejected += 1
            return
        except DeadlinePassed:
            self._late += 1
            return
        self._start()
        ran = yield item.outcome
        if ran:
            yield from self._in_loop((1 - _RECEIVING) * service.call_seconds)
            yield env.timeout(self._round_trip_s() / 2)
        if not ran or env.now > deadline:
            self._late += 1
        else:
            self._latencies.append(env.now - began)
            self._meanwhile += int(env.now <= self._traffic.seconds)

    def _up_s(self, edge):
        """Seconds until a request has crossed both links."""
        setting, bits = self._setting, 8 * self._service.bytes_up
        now = self._env.now
        if setting.link is not None:
            now = self._cross(edge, now, bits / setting.link.bits_per_second)
        shared_s = bits / setting.shared_bits_per_second
        self._busy["shared link"] += shared_s
        now = self._cross(-1, now, shared_s)
        return now - self._env.now + self._round_trip_s() / 2

    def _cross(self, link, now, seconds):
        self._busy_until[link] = max(now, self._busy_until[link]) + seconds
        return float(self._busy_until[link])

    def _round_trip_s(self):
        link = self._setting.link
        return 0.0 if link is None else link.round_trip_seconds

    def _in_loop(self, seconds):
        if not seconds:
            return
        with self._loop.request() as turn:
            yield turn
            yield self._cores.work(seconds, goes_first=True)
        self._busy["event loop"] += seconds

    def _start(self):
        """Hands batches to free threads, as `running.Runner` does."""
        self._looks += 1
        while self._free:
            wait_s = self._queue.ready_in_s()
            if wait_s is None:
                return
            if wait_s > 0:
                # Below, the clock would not move on.
                self._env.process(self._look_in(max(wait_s, _TICK_S)))
                return
            batch, dropped = self._queue.take()
            self._drop(dropped)
            if batch:
                self._free -= 1
                self._env.process(self._stages(batch))

    def _look_in(self, seconds):
        look = self._looks
        yield self._env.timeout(seconds)
        if look == self._looks:
            self._start()

    def _stages(self, batch):
        env = self._env
        self._waits += [env.now - item.arrived for item in batch]
        rows = sum(item.rows for item in batch)
        self._batches.append(rows)
        seconds = self._service.seconds(rows)
        yield self._cores.work(seconds)
        self._busy["stages"] += seconds
        self._free += 1
        self._queue.ran(rows, seconds)
        for item in batch:
            item.outcome.succeed(True)
        self._start()

    def _drop(self, items):
        for item in items:
            item.outcome.succeed(False)


class _Cores:
    """Cores for threads, each of which runs on at most one of them."""

    def __init__(self, env, number):
        self._env, self._number = env, number
        # What each thread that works has left to do, in seconds of a core.
        self._first, self._others = {}, {}
        self._since = 0.0
        self._plans = 0

    def work(self, seconds, goes_first=False):
        """An event that comes when so much work is done."""
        self._advance()
        done = self._env.event()
        (self._first if goes_first else self._others)[done] = seconds
        self._plan()
        return done

    def _parts(self):
        """Threads that work, with the speed that they have."""
        parts, free = [], self._number
        for threads in (self._first, self._others):
            if threads:
                speed = min(1.0, free / len(threads))
                parts.append((threads, speed))
                free -= speed * len(threads)
        return [part for part in parts if part[1] > 0]

    def _advance(self):
        passed_s = self._env.now - self._since
        for threads, speed in self._parts():
            for thread in threads:
                threads[thread] -= passed_s * speed
        self._since = self._env.now

    def _plan(self):
        """Looks again when the first one will be done, unless more comes."""
        self._plans += 1
        ends = [
            (max(0.0, left) / speed, threads, thread)
            for threads, speed in self._parts()
            for thread, left in threads.items()
        ]
        if ends:
            after_s, threads, thread = min(ends, key=lambda end: end[0])
            plan, wake = self._plans, self._env.timeout(after_s)
            wake.callbacks.append(
                lambda _: plan == self._plans and self._end(threads, thread)
            )

    def _end(self, threads, thread):
        self._advance()
        # It is done, whatever rounding has left of it.
        del threads[thread]
        thread.succeed()
        self._plan()
