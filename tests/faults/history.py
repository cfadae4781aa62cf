"""What clients saw, written down, and judged afterwards.

A client writes an *invoke* before each request and one *ok* or *fail* after
it; whoever breaks things writes *info*. The judgement is a pure function of
the list: it knows nothing of workers and networks.
"""

import dataclasses
import json
import threading
import time

INVOKE, OK, FAIL, INFO = "invoke", "ok", "fail", "info"


@dataclasses.dataclass(frozen=True)
class Event:
    """A line of a history.

    Args:
        t: Seconds by a monotonic clock.
        process: Which client, or who broke something.
        type: `"invoke"`, `"ok"`, `"fail"` or `"info"`.
        id: Id of the request; of an info what happened.
        value: Of an ok `{"rows": ..., "answered_by": [...], "right": [...]}`;
            of a fail the error.
    """

    t: float
    process: str
    type: str
    id: str
    value: object = None


class History:
    """Events of several threads, in the order in which they happened.

    They go straight into a file: there they outlive a failure, and take no
    memory where memory is what is looked at.

    Args:
        path: File to write, a JSON object a line.
    """

    def __init__(self, path):
        self._path = path
        self._file = open(path, "w", encoding="utf-8")
        self._lock = threading.Lock()

    def add(self, process, type, id, value=None):
        with self._lock:
            event = Event(time.monotonic(), process, type, id, value)
            self._file.write(f"{json.dumps(dataclasses.asdict(event))}\n")

    @property
    def events(self):
        """All events so far, a list."""
        with self._lock:
            self._file.flush()
            lines = self._path.read_text(encoding="utf-8").splitlines()
        return [Event(**json.loads(line)) for line in lines]

    def close(self):
        self._file.close()


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a history shows.

    Args:
        requests: How many were begun.
        lost: Ids of requests that were begun and never ended.
        doubled: Ids of requests that ended more than once.
        refused: Ids of requests that failed.
        wrong: Ids with an answer that is neither right nor degraded.
        short: Ids with fewer or more answers than rows.
        degraded: Samples with a degraded answer.
        unexplained: Ids of requests with a degraded answer that overlap no
            gap.
        samples: Samples with an answer.
        slowest_s: Seconds of the slowest request.
    """

    requests: int
    lost: tuple
    doubled: tuple
    refused: tuple
    wrong: tuple
    short: tuple
    degraded: int
    unexplained: tuple
    samples: int
    slowest_s: float

    @property
    def is_clean(self):
        """Whether nothing was lost, doubled, refused, wrong or unexplained."""
        return not (
            self.lost
            or self.doubled
            or self.refused
            or self.wrong
            or self.short
            or self.unexplained
        )


def judge(events, after_gap_s=2.0):
    """Judges a history.

    A *gap* is what lies between an info `gap` and the next info `back`; a
    degraded answer is explained if its request overlaps one, or the seconds
    after it.

    Args:
        events: A list of `Event`.
        after_gap_s: Seconds after a gap in which answers may be degraded yet.

    Returns:
        A `Verdict`.
    """
    gaps = _gaps(events, after_gap_s)
    begun, ended = {}, {}
    for event in events:
        if event.type == INVOKE:
            begun[event.id] = event
        elif event.type in (OK, FAIL):
            ended.setdefault(event.id, []).append(event)
    refused, wrong, short, unexplained = [], [], [], []
    degraded = samples = 0
    slowest = 0.0
    for id_, found in ended.items():
        start, end = begun[id_], found[0]
        slowest = max(slowest, end.t - start.t)
        if end.type == FAIL:
            refused.append(id_)
            continue
        by, right = end.value["answered_by"], end.value["right"]
        if not len(by) == len(right) == end.value["rows"]:
            short.append(id_)
            continue
        samples += len(by)
        if any(
            b != "degraded" and not r for b, r in zip(by, right, strict=True)
        ):
            wrong.append(id_)
        count = sum(b == "degraded" for b in by)
        degraded += count
        if count and not any(a < end.t and start.t < b for a, b in gaps):
            unexplained.append(id_)
    return Verdict(
        requests=len(begun),
        lost=tuple(id_ for id_ in begun if id_ not in ended),
        doubled=tuple(id_ for id_, found in ended.items() if len(found) > 1),
        refused=tuple(refused),
        wrong=tuple(wrong),
        short=tuple(short),
        degraded=degraded,
        unexplained=tuple(unexplained),
        samples=samples,
        slowest_s=slowest,
    )


def _gaps(events, after_gap_s):
    gaps, start = [], None
    for event in events:
        if event.type != INFO:
            continue
        if event.id == "gap" and start is None:
            start = event.t
        elif event.id == "back" and start is not None:
            gaps.append((start, event.t + after_gap_s))
            start = None
    if start is not None:
        gaps.append((start, float("inf")))
    return gaps
