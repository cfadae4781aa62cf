"""Which requests run together, and which are turned away.

A `Queue` holds the requests for one generation and stage, at most so many
rows. It knows no threads and no clock but the one that it is given: `running`
does the rest.
"""

import collections
import dataclasses
import math
import random
import time
from typing import Any

from protos.errors import DeadlinePassed, Overloaded

#: Bounds of the time after which a caller is told to come back.
MIN_RETRY_AFTER_S, MAX_RETRY_AFTER_S = 0.01, 60.0
# Rows per second before anything was measured, and how much a new measurement
# counts.
_FIRST_RATE, _WEIGHT = 1000.0, 0.2


@dataclasses.dataclass(eq=False, slots=True)
class Item:
    """A request that waits.

    Args:
        arrays: What the stage takes, all with equally many rows.
        rows: How many.
        deadline: When nobody waits for the answer any more, by the clock of
            the queue.
        outcome: Who gets the answer; the queue does not look at it.
        arrived: When it came, by the clock of the queue.
    """

    arrays: tuple
    rows: int
    deadline: float
    outcome: Any = None
    arrived: float = 0.0


class Queue:
    """Requests that wait for the same stage, first come, first served.

    A lone request is ready at once: a delay only makes sense where few, large
    batches are better than many small ones, and where somebody can wait.

    Args:
        max_rows: Rows that may wait.
        max_batch: Rows that run together.
        max_delay_s: How long the first request waits for others to fill up
            its batch.
        clock: Returns seconds that never go back.
        spread: Returns random numbers from 0 to 1, so that those who were
            turned away do not come back together.
    """

    def __init__(
        self,
        max_rows,
        max_batch,
        max_delay_s=0.0,
        clock=time.monotonic,
        spread=random.random,
    ):
        self._max_rows, self._max_batch = max_rows, max_batch
        self.max_delay_s = max_delay_s
        self._clock, self._spread = clock, spread
        self._items = collections.deque()
        self._rows = 0
        self._rate = _FIRST_RATE
        # Rows and seconds of the last batch.
        self._last = 1, math.inf

    def __len__(self):
        return len(self._items)

    @property
    def rows(self):
        """Rows that wait."""
        return self._rows

    @property
    def oldest(self):
        """When the first request came, or `None` if none waits."""
        return self._items[0].arrived if self._items else None

    def add(self, item):
        """Takes a request in.

        Args:
            item: An `Item`; its `arrived` is set.

        Returns:
            The items that were dropped to make room, because their deadline
            has passed.

        Raises:
            DeadlinePassed: If its own has.
            Overloaded: If the queue is full; says when to come back.
        """
        now = self._clock()
        if item.deadline <= now:
            raise DeadlinePassed("The request came after its deadline.")
        dropped = []
        if self._rows + item.rows > self._max_rows:
            dropped = self._drop(now)
        if self._rows + item.rows > self._max_rows:
            raise Overloaded(
                f"{self._rows} rows wait, and at most {self._max_rows} may.",
                self.retry_after_s(),
            )
        item.arrived = now
        self._items.append(item)
        self._rows += item.rows
        return dropped

    def discard(self, item):
        """Takes a request out that nobody waits for any more."""
        if item in self._items:
            self._items.remove(item)
            self._rows -= item.rows

    def ready_in_s(self):
        """Seconds until a batch should run; `None` if nothing waits."""
        if not self._items:
            return None
        if self._rows >= self._max_batch:
            return 0.0
        waited = self._clock() - self._items[0].arrived
        return max(0.0, self.max_delay_s - waited)

    def take(self):
        """The next batch.

        Returns:
            `(batch, dropped)`: items to run together, at most `max_batch`
            rows unless the first alone has more; and those whose deadline has
            passed, which do not run.
        """
        dropped = self._drop(self._clock())
        batch, rows = [], 0
        while self._items:
            rows += self._items[0].rows
            if batch and rows > self._max_batch:
                break
            batch.append(self._items.popleft())
            self._rows -= batch[-1].rows
        return batch, dropped

    def ran(self, rows, seconds):
        """Notes how long a batch took."""
        self._last = rows, seconds
        rate = rows / max(seconds, 1e-6)
        self._rate += _WEIGHT * (rate - self._rate)

    def expected_s(self, rows):
        """Seconds that a batch should take at most; infinity before any ran."""
        last_rows, seconds = self._last
        return seconds * max(1.0, rows / last_rows)

    def retry_after_s(self):
        """When what waits now will have run, by the rate that was measured."""
        seconds = self._rows / self._rate * (1 + self._spread())
        return min(max(seconds, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)

    def _drop(self, now):
        dropped = [item for item in self._items if item.deadline <= now]
        if dropped:
            self._items = collections.deque(
                item for item in self._items if item.deadline > now
            )
            self._rows = sum(item.rows for item in self._items)
        return dropped
