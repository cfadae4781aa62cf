"""Many requests of one stream at the same time."""

import queue
import threading


class Pipeline:
    """Answers the requests of a stream as they come, in any order.

    Iterate over it for the answers; it ends when there are no more requests,
    or none are read any more, and all answers were handed on.

    Args:
        answer: Called with a request; returns its answer and does not raise.
        requests: Iterator of requests. It may raise, as gRPC's does when the
            peer has gone.
        pool: `ThreadPoolExecutor` that calls `answer`.
        limit: Requests at the same time. The next one is not read before, so
            that a peer which reads no answers cannot pile them up here.
    """

    def __init__(self, answer, requests, pool, limit):
        self._answer, self._requests = answer, requests
        self._pool = pool
        self._slots = threading.Semaphore(limit)
        self._ready = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._num_read = 0
        self._is_reading = True

    def __iter__(self):
        reader = threading.Thread(
            target=self._read, name="split-requests", daemon=True
        )
        reader.start()
        given = 0
        try:
            while self._is_reading or given < self._num_read:
                future = self._ready.get()
                # `None` says that no more are read.
                if future is not None:
                    given += 1
                    yield future.result()
                    # Only now: while the peer does not take it, it is here.
                    self._slots.release()
        finally:
            self.stop()

    def stop(self):
        """Reads no more requests; those that were read are answered."""
        with self._lock:
            self._is_reading = False
        self._ready.put(None)
        # The reader may wait for it.
        self._slots.release()

    def _read(self):
        try:
            for request in self._requests:
                self._slots.acquire()
                with self._lock:
                    if not self._is_reading:
                        return
                    future = self._pool.submit(self._answer, request)
                    self._num_read += 1
                future.add_done_callback(self._ready.put)
        # Whatever ends the stream: there is nobody to tell.
        except Exception:
            pass
        finally:
            self.stop()
