"""Runs batches in worker threads, and everything else in the event loop.

While no thread is free, requests gather in their queues; as soon as one is,
the queue whose first request has waited longest gives its next batch. So a
lone request runs at once, and batches grow by themselves with the load.
"""

import asyncio
import concurrent.futures
import time
from typing import NamedTuple

import numpy as np

from cloud_worker.batching import Item
from keras_earlyexit.bundle.answering import Routed
from protos.errors import DeadlinePassed


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
        self._free = num_workers
        self._observe = observe
        # The entrances with requests that wait.
        self._waiting = set()
        self._timer = None
        self._threads = concurrent.futures.ThreadPoolExecutor(
            num_workers, thread_name_prefix="stages"
        )

    @property
    def rows(self):
        """Rows that wait, in all queues."""
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
        loop = asyncio.get_running_loop()
        item = Item(arrays, len(arrays[0]), deadline, loop.create_future())
        _refuse(entrance.queue.add(item))
        self._waiting.add(entrance)
        self._start()
        try:
            return await item.outcome
        except asyncio.CancelledError:
            # Nobody waits any more: it must not run, nor take a place.
            entrance.queue.discard(item)
            raise

    def close(self):
        """Waits for the batches that run, and lets the threads go."""
        if self._timer is not None:
            self._timer.cancel()
        self._threads.shutdown()

    def _start(self):
        """Hands batches to free threads, oldest first."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._free:
            entrance, wait_s = self._next()
            if entrance is None:
                return
            if wait_s > 0:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(wait_s, self._start)
                return
            batch, dropped = entrance.queue.take()
            _refuse(dropped)
            if batch:
                self._free -= 1
                loop = asyncio.get_running_loop()
                self._threads.submit(self._work, loop, entrance, batch)

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

    def _work(self, loop, entrance, batch):
        """Runs a batch; in a worker thread."""
        found, error = None, None
        try:
            found = run_batch(entrance.bundle, batch)
        except BaseException as failure:
            error = failure
        # Less work than with a future of the event loop's.
        loop.call_soon_threadsafe(self._ran, entrance, batch, found, error)

    def _ran(self, entrance, batch, found, error):
        self._free += 1
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
        self._start()


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
    routed = bundle.route(by_name(bundle, arrays))
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


def by_name(bundle, arrays):
    """Arrays in the order of a bundle's inputs, in the form that it takes."""
    specs = bundle.manifest.stages[0].inputs
    return {x.name: array for x, array in zip(specs, arrays, strict=True)}


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
