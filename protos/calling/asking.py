"""Asks for the answers of a batch, more than once where that may help."""

import collections
import secrets
import threading
import time

import numpy as np

from protos.calling.answers import Part, join
from protos.calling.retry import RetryBudget
from protos.codecs import Codec
from protos.errors import (
    CircuitOpen,
    CloudUnavailable,
    DeadlinePassed,
    Overloaded,
    SplitError,
    VersionMismatch,
)

#: With less silence than this, a peer that owes replies is only slow.
_STALLED_S = 0.5
#: However long an overloaded peer wants to be left alone.
_MAX_RETRY_AFTER_S = 2.0
#: Features in one request, decoded, unless one sample has more: what is larger
#: keeps all others on the stream waiting, and is in memory three times.
_MAX_REQUEST_BYTES = 2 << 20
#: Of the id of the request that a call belongs to.
_MAX_PREFIX = 32


class Asking:
    """Sends batches over the connection of the moment. For any thread.

    Args:
        connector: A `Connector`.
        options: `LinkOptions`.
        identity: The `Identity` of the other side.
        expects: What replies have to hold, an `Expects`.
        backoff: A `Backoff`.
    """

    def __init__(self, connector, options, identity, expects, backoff):
        self._connector = connector
        self._options = options
        self._features = identity.feature
        self._expects = expects
        self._backoff = backoff
        self._codec = Codec.parse(options.codec)
        self._budget = RetryBudget()
        self._slots = threading.BoundedSemaphore(options.max_in_flight)
        self._closing = threading.Event()
        self._not_before = 0.0
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(("calls", "attempts", "retries"), 0)

    @property
    def counts(self):
        """Dict of how many calls, attempts and retries there were."""
        with self._lock:
            return dict(self._counts)

    def checked(self, arrays):
        """The arrays in the order of the features, and how many rows.

        Raises:
            ValueError: If they are not what the next stage takes.
        """
        wanted = [feature.name for feature in self._features]
        found = {name: np.shape(array) for name, array in arrays.items()}
        rows = {shape[0] if shape else 0 for shape in found.values()}
        if set(found) != set(wanted) or len(rows) != 1 or 0 in rows:
            raise ValueError(
                f"Expected arrays {wanted} with equally many samples, at "
                f"least one. Received: the shapes {found}. Pass what the stage "
                "before returned."
            )
        return [arrays[name] for name in wanted], rows.pop()

    def ask(self, arrays, ends_at, request_id=None):
        """The answers for a batch, until a time.

        Args:
            arrays: List of arrays, as `checked` returns them.
            ends_at: Until when, by `time.monotonic`.
            request_id: As for `Link.infer`.
        """
        self._count("calls")
        parts, found, attempt = None, {}, 0
        while True:
            self._stay_away(ends_at)
            connection = self._connector.ready(ends_at)
            attempt += 1
            if parts is None:
                parts = self._parts(arrays, connection, request_id)
            left = [part for part in parts if part not in found]
            error = self._attempt(left, connection, ends_at, found)
            if error is None:
                self._budget.succeeded()
                return join([found[part] for part in parts])
            wait_s = self._wait_s(error, attempt)
            if wait_s is None or time.monotonic() + wait_s >= ends_at:
                raise error
            self._count("retries")
            self._closing.wait(wait_s)

    def close(self):
        """Ends waits between attempts."""
        self._closing.set()

    def _parts(self, arrays, connection, request_id):
        rows = len(arrays[0])
        num_bytes = max(1, sum(array.nbytes for array in arrays))
        size = min(
            self._options.max_rows,
            connection.hello.max_rows,
            max(1, _MAX_REQUEST_BYTES * rows // num_bytes),
        )
        # Callers may choose the same ids, and each has to be unique here.
        prefix = f"{request_id[:_MAX_PREFIX]}." if request_id else ""
        return [
            Part(
                [array[start : start + size] for array in arrays],
                self._codec,
                f"{prefix}{secrets.token_hex(4 if prefix else 16)}",
            )
            for start in range(0, rows, size)
        ]

    def _attempt(self, parts, connection, ends_at, found):
        """Sends requests and collects replies in `found`.

        Returns the error that says most, `None` if all have been answered.
        """
        sent, errors = collections.deque(), []
        try:
            for part in parts:
                # Who holds a slot collects first, or two could wait for each
                # other.
                while sent and not self._slots.acquire(blocking=False):
                    errors += self._collect(sent, connection, ends_at, found)
                if not sent and not self._slots.acquire(
                    timeout=max(0.0, ends_at - time.monotonic())
                ):
                    return _too_late()
                sent.append((part, *self._send(part, connection, ends_at)))
            while sent:
                errors += self._collect(sent, connection, ends_at, found)
        finally:
            for part, *_ in sent:
                self._done(part, connection)
        lasting = [x for x in errors if not isinstance(x, CloudUnavailable)]
        return (lasting or errors or [None])[0]

    def _send(self, part, connection, ends_at):
        self._count("attempts")
        started = time.monotonic()
        content = part.content(connection.hello.generation, ends_at - started)
        return connection.send(part.request_id, content), started

    def _collect(self, sent, connection, ends_at, found):
        """Waits for the oldest reply; returns a list of its error."""
        part, future, sent_at = sent.popleft()
        try:
            left_s = ends_at - time.monotonic()
            reply, num_bytes = future.result(max(0.0, left_s))
            round_trip_s = time.monotonic() - sent_at
            found[part] = part.read(
                reply, num_bytes, self._expects, round_trip_s
            )
            return []
        except TimeoutError:
            if connection.silent_s() >= _STALLED_S:
                self._connector.lost(connection, opens=True)
            return [_too_late()]
        except SplitError as error:
            self._look_at(error, connection)
            return [error]
        finally:
            self._done(part, connection)

    def _done(self, part, connection):
        connection.done(part.request_id)
        self._slots.release()

    def _look_at(self, error, connection):
        """Draws from an error what concerns calls to come."""
        if isinstance(error, Overloaded):
            wait_s = min(error.retry_after_s or 0.0, _MAX_RETRY_AFTER_S)
            self._not_before = time.monotonic() + wait_s
        elif isinstance(error, VersionMismatch) or (
            isinstance(error, CloudUnavailable)
            and not isinstance(error, DeadlinePassed)
        ):
            # The next connection says hello, which says what is wrong.
            self._connector.lost(connection)

    def _stay_away(self, ends_at):
        """Leaves a peer alone that has asked for it."""
        left_s = self._not_before - time.monotonic()
        if left_s <= 0:
            return
        if self._not_before >= ends_at:
            raise Overloaded(
                "Expected a cloud worker with room. Received: one that asked "
                f"to be left alone for {left_s:.3f} s more. Allow a longer "
                "deadline, or give it more machines.",
                left_s,
            )
        self._closing.wait(left_s)

    def _wait_s(self, error, attempt):
        """Seconds before a call is tried again, or `None` for never."""
        if isinstance(error, VersionMismatch):
            return 0.0 if attempt == 1 else None
        if not isinstance(error, CloudUnavailable) or isinstance(
            error, (DeadlinePassed, CircuitOpen)
        ):
            return None
        if not self._budget.failed() or attempt >= self._options.max_attempts:
            return None
        wait_s = self._backoff.wait_s(attempt)
        if isinstance(error, Overloaded):
            # Never before it said, and not all at the same moment.
            wait_s += error.retry_after_s or 0.0
        return wait_s

    def _count(self, name):
        with self._lock:
            self._counts[name] += 1


def _too_late():
    return DeadlinePassed(
        "Expected an answer within the deadline. Received: none. Allow a "
        "longer deadline, or look at the network and the cloud worker's load."
    )
