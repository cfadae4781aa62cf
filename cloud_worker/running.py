"""Runs batches in worker threads, and everything else in the event loop.

While no thread is free, requests gather in their queues; as soon as one is,
the queue whose first request has waited longest gives its next batch. So a
lone request runs at once, and batches grow by themselves with the load.

A thread that is done takes the next batch by itself: the event loop may be busy
with what came meanwhile, and the stages would stand still until it is not.

A request that is alone, and small, runs in the event loop: nobody is there whom
that could hold up, and two changes of thread cost as much as some stages do.
"""

import asyncio
import queue
import threading
import time
from typing import NamedTuple

import numpy as np

from cloud_worker.batching import Item
from keras_earlyexit.bundle.answering import Routed
from protos.errors import DeadlinePassed

#: What comes while the event loop runs a batch waits for as long.
_MAX_IN_LOOP_S = 0.005


class Ran(NamedTuple):
    """What became of a request.

    Args:
        routed: What the bundle's `route` returned, for the request's own rows.
        queue_s: Seconds that it waited.
        compute_s: Seconds that its batch ran.
    """

    routed: Routed
    queue_s: float
    compute_s: float


class Runner:
    """Batches requests and runs them. To be used from one event loop.

    Args:
        num_workers: Batches that run at the same time.
        observe: Called with rows and seconds of each batch that ran.
    """

    def __init__(self, num_workers=1, observe=None):
        self._observe = observe
        # For what threads and the event loop share: the queues and these two.
        self._lock = threading.Lock()
        # The entrances with requests that wait.
        self._waiting = set()
        self._asleep = num_workers
        self._num_workers = num_workers
        # Requests without an answer; for the event loop alone.
        self._num_pending = 0
        # Wakes a thread for each `True`, and ends one for each `False`.
        self._calls = queue.SimpleQueue()
        self._loop = self._timer = None
        self._threads = [
            threading.Thread(target=self._work, name="stages", daemon=True)
            for _ in range(num_workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def rows(self):
        """Rows that wait, in all queues."""
        with self._lock:
            return sum(entrance.queue.rows for entrance in self._waiting)

    async def run(self, entrance, arrays, deadline):
        """Routes the rows of one request.

        Args:
            entrance: What they enter, with a `queue` and a `bundle`.
            arrays: Tuple of arrays in the order of the stage's inputs.
            deadline: Until when, by `time.monotonic`.

        Returns:
            A `Ran`.

        Raises:
            DeadlinePassed: If no batch could take it in time.
            Overloaded: If too many rows wait.
        """
        self._loop = asyncio.get_running_loop()
        outcome = self._loop.create_future()
        item = Item(arrays, len(arrays[0]), deadline, outcome)
        self._num_pending += 1
        try:
            if self._is_alone(entrance, item.rows):
                # Others may have come together with it.
                await asyncio.sleep(0)
                if self._is_alone(entrance, item.rows):
                    return self._run_here(entrance, item)
            return await self._run_in_thread(entrance, item)
        finally:
            self._num_pending -= 1

    def _is_alone(self, entrance, rows):
        """Whether a request may run in the event loop."""
        return (
            self._num_pending == 1
            and self._asleep == self._num_workers
            and not entrance.queue.max_delay_s
            and entrance.queue.expected_s(rows) <= _MAX_IN_LOOP_S
        )

    def _run_here(self, entrance, item):
        with self._lock:
            entrance.queue.add(item)
            batch, dropped = entrance.queue.take()
        _refuse(dropped)
        if batch:
            found = run_batch(entrance.bundle, batch)
            self._ran(entrance, batch, found, None)
        return item.outcome.result()

    async def _run_in_thread(self, entrance, item):
        with self._lock:
            dropped = entrance.queue.add(item)
            self._waiting.add(entrance)
            sleeps = self._asleep > 0
        _refuse(dropped)
        if sleeps:
            self._wake()
        try:
            return await item.outcome
        except asyncio.CancelledError:
            # Nobody waits any more: it must not run, nor take a place.
            with self._lock:
                entrance.queue.discard(item)
            raise

    def close(self):
        """Waits for the batches that run, and lets the threads go."""
        if self._timer is not None:
            self._timer.cancel()
        for _ in self._threads:
            self._calls.put(False)
        for thread in self._threads:
            thread.join()

    def _wake(self):
        """Wakes a thread that sleeps, once a batch is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        with self._lock:
            if not self._asleep:
                return
            entrance, wait_s = self._next()
            if entrance is None:
                return
            if wait_s <= 0:
                self._asleep -= 1
        if wait_s <= 0:
            self._calls.put(True)
        else:
            self._timer = self._loop.call_later(wait_s, self._wake)

    def _next(self):
        """The entrance whose batch is due first, and in how many seconds."""
        best = None, 0.0
        for entrance in list(self._waiting):
            wait_s = entrance.queue.ready_in_s()
            if wait_s is None:
                self._waiting.discard(entrance)
            elif best[0] is None or (wait_s, entrance.queue.oldest) < (
                best[1],
                best[0].queue.oldest,
            ):
                best = entrance, wait_s
        return best

    def _work(self):
        """Runs batches as long as there are any; in a worker thread."""
        while self._calls.get():
            while True:
                with self._lock:
                    entrance, wait_s = self._next()
                    if entrance is None or wait_s > 0:
                        self._asleep += 1
                        break
                    batch, dropped = entrance.queue.take()
                if dropped:
                    self._loop.call_soon_threadsafe(_refuse, dropped)
                if batch:
                    self._run(entrance, batch)
            if entrance is not None:
                # It is due later, which the event loop looks after.
                self._loop.call_soon_threadsafe(self._wake)

    def _run(self, entrance, batch):
        found, error = None, None
        try:
            found = run_batch(entrance.bundle, batch)
        except BaseException as failure:
            error = failure
        # Less work than with a future of the event loop's.
        self._loop.call_soon_threadsafe(
            self._ran, entrance, batch, found, error
        )

    def _ran(self, entrance, batch, found, error):
        if error is None:
            answers, seconds = found
            rows = sum(item.rows for item in batch)
            entrance.queue.ran(rows, seconds)
            if self._observe is not None:
                self._observe(rows, seconds)
        for position, item in enumerate(batch):
            if item.outcome.done():
                continue
            if error is not None:
                item.outcome.set_exception(error)
            else:
                item.outcome.set_result(answers[position])


def _refuse(items):
    for item in items:
        if not item.outcome.done():
            item.outcome.set_exception(
                DeadlinePassed("The deadline passed before its turn came.")
            )


def run_batch(bundle, batch):
    """Routes all rows of a batch together; in a worker thread.

    Args:
        bundle: A `Bundle`.
        batch: List of `Item`s.

    Returns:
        A list of `Ran`, one for each item, and the seconds that it took.
    """
    started = time.monotonic()
    arrays = batch[0].arrays
    if len(batch) > 1:
        parts = zip(*(item.arrays for item in batch), strict=True)
        arrays = tuple(np.concatenate(part) for part in parts)
    routed = bundle.route_fitted(arrays)
    seconds = time.monotonic() - started
    if len(batch) == 1:
        found = [routed]
    else:
        found = split(routed, [item.rows for item in batch])
    answers = [
        Ran(part, started - item.arrived, seconds)
        for part, item in zip(found, batch, strict=True)
    ]
    return answers, seconds


def split(routed, counts):
    """Takes apart what was routed together.

    Args:
        routed: A `Routed`.
        counts: Rows of each part, in order.

    Returns:
        A `Routed` for each part, its rows counted from 0.
    """
    parts, start = [], 0
    for count in counts:
        end = start + count
        first, last = np.searchsorted(routed.staying, (start, end))
        parts.append(
            Routed(
                predictions=routed.predictions[start:end],
                exit_index=routed.exit_index[start:end],
                score=routed.score[start:end],
                staying=routed.staying[first:last] - start,
                feature=_some(routed.feature, first, last),
                carry=_some(routed.carry, first, last),
            )
        )
        start = end
    return parts


def _some(array, first, last):
    return array[first:last] if array is not None and last > first else None
