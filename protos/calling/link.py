"""The calling side of a cut: asks the next worker, within a deadline."""

import collections
import concurrent.futures
import dataclasses
import itertools
import secrets
import threading
import time

from protos.calling.answers import Expects, Part, join
from protos.calling.breaker import CircuitBreaker
from protos.calling.connection import connect
from protos.calling.connector import Connector
from protos.calling.retry import Backoff, RetryBudget
from protos.codecs import Codec
from protos.errors import (
    CircuitOpen,
    CloudUnavailable,
    DeadlinePassed,
    Overloaded,
    SplitError,
    VersionMismatch,
)
from protos.identity import Identity
from protos.limits import Limits

#: With less silence than this, a peer that owes replies is only slow.
_STALLED_S = 0.5
# Of the time for a hello, until there was one: a far peer needs more, a peer
# that is gone should be asked soon again. Then some round trips, at least 1.
_HELLO_TIMEOUTS = (1, 1, 4)
_HELLO_ROUND_TRIPS = 5
#: However long an overloaded peer wants to be left alone.
_MAX_RETRY_AFTER_S = 2.0


@dataclasses.dataclass(frozen=True)
class LinkOptions:
    """How a link behaves.

    Args:
        deadline_s: Seconds that a call may take, where it does not say.
        codec: Name of the form in which features cross.
        edge_id: What this side calls itself; empty where its certificate
            does.
        max_rows: Samples in one message, where the peer allows as many.
        max_in_flight: Requests without a reply at the same time.
        max_attempts: How often one call is tried.
        hello_timeout_s: Seconds that a hello may take to a peer that is near.
        probe_every_s: Seconds between two probes for a peer that is gone.
        max_message_bytes: Largest message, both ways.
    """

    deadline_s: float = 2.0
    codec: str = "float32"
    edge_id: str = ""
    max_rows: int = 256
    max_in_flight: int = 8
    max_attempts: int = 4
    hello_timeout_s: float = 1.0
    probe_every_s: float = 0.5
    max_message_bytes: int = 4 << 20


@dataclasses.dataclass
class LinkStats:
    """What a link has done so far."""

    calls: int = 0
    attempts: int = 0
    retries: int = 0


class Link:
    """A connection to the next worker that comes back by itself.

    Nothing is sent before the first call. Several threads may use one link.

    Args:
        target: `"host:port"` of the worker.
        identity: The `Identity` that it has to have.
        security: A `ClientSecurity`.
        prediction: Spec of the predictions, with `.name`, `.shape`, `.dtype`.
        num_exits: Exits of the whole model, `final` included.
        **options: Fields of `LinkOptions`.

    Raises:
        ValueError: If an option is wrong or a certificate cannot be read.

    Example:

    ```python
    with Link.of(manifest, "cloud.example.org:50051", security) as link:
        answers = link.infer({"feature": feature}, deadline_s=0.5)
    ```
    """

    def __init__(
        self, target, identity, security, *, prediction, num_exits, **options
    ):
        self.identity = identity
        self.target = target
        options = LinkOptions(**options)
        limits = Limits.for_specs(
            [*identity.feature, prediction], options.max_rows
        )
        self.options = options = dataclasses.replace(
            options, max_message_bytes=limits.max_message_bytes
        )
        self._codec = Codec.parse(options.codec)
        self._expects = Expects(prediction, identity.first_stage, num_exits)
        # Files that are wrong are an error now and not at the first sample.
        security.credentials(target)
        self._breaker = CircuitBreaker(probe_every_s=options.probe_every_s)
        self._budget = RetryBudget()
        self._backoff = Backoff()
        self._hello_timeouts = itertools.cycle(
            options.hello_timeout_s * factor for factor in _HELLO_TIMEOUTS
        )
        self._security = security
        self._connector = Connector(
            self._connect,
            self._breaker,
            self._backoff,
        )
        self._slots = threading.BoundedSemaphore(options.max_in_flight)
        self._lock = threading.Lock()
        self._pool = None
        self._closing = threading.Event()
        self._not_before = 0.0
        self._stats = LinkStats()

    @classmethod
    def of(cls, manifest, target, security, first_stage=None, **options):
        """The link that belongs to a bundle.

        Args:
            manifest: The `Manifest` of the bundle on this side.
            target: As for `Link`.
            security: As for `Link`.
            first_stage: The stage to enter on the other side; `None` for the
                one after the bundle's last.
            **options: As for `Link`.

        Returns:
            A `Link`.
        """
        (prediction,) = (
            spec
            for spec in manifest.stages[-1].outputs
            if spec.name == "prediction"
        )
        return cls(
            target,
            Identity.of(manifest, first_stage),
            security,
            prediction=prediction,
            num_exits=len(manifest.exit_names),
            **options,
        )

    @property
    def is_connected(self):
        """Whether the worker has said hello and has not been lost since."""
        return self._connector.is_connected

    @property
    def circuit(self):
        """`"closed"`, `"open"` or `"half-open"`."""
        return self._breaker.state

    @property
    def last_error(self):
        """Why there is no connection, a `SplitError`, or `None`."""
        return self._connector.last_error

    @property
    def stats(self):
        """Dict of what the link has done so far."""
        return {
            **dataclasses.asdict(self._stats),
            "circuit_opened": self._breaker.times_opened,
        }

    def connect(self, timeout_s=None):
        """Says hello, if that has not been done.

        Args:
            timeout_s: Seconds to wait; `None` takes the deadline of calls.

        Returns:
            Whether the worker is there. That it is not is no error.

        Raises:
            VersionMismatch: If it has no part of the same model.
            NotAllowed: If a certificate, a token or an id is wrong.
        """
        timeout_s = self.options.deadline_s if timeout_s is None else timeout_s
        try:
            self._connector.ready(time.monotonic() + timeout_s)
        except CloudUnavailable:
            return False
        return True

    def infer(self, arrays, deadline_s=None, request_id=None):
        """The answers for a batch.

        Args:
            arrays: Dict name -> array (N, ...), with the names of the
                identity's features, all with equally many rows.
            deadline_s: Seconds that this may take, retries included; `None`
                takes the link's.
            request_id: Id of the request that this belongs to, for the logs
                of all workers.

        Returns:
            `Answers`.

        Raises:
            VersionMismatch: If the worker has no part of the same model.
            NotAllowed: If a certificate, a token or an id is wrong.
            CloudUnavailable: If there is no answer in time.
            SplitError: If the worker or the request is broken.
        """
        return self._infer(arrays, self._ends_at(deadline_s), request_id)

    def submit(self, arrays, deadline_s=None, request_id=None):
        """As `infer`, without waiting.

        Returns:
            A `concurrent.futures.Future`; it is done within the deadline.
        """
        ends_at = self._ends_at(deadline_s)
        with self._lock:
            if self._pool is None:
                self._pool = concurrent.futures.ThreadPoolExecutor(
                    self.options.max_in_flight, "split-calls"
                )
            return self._pool.submit(self._infer, arrays, ends_at, request_id)

    def close(self):
        """Closes the connection. Calls under way fail."""
        self._closing.set()
        self._connector.close()
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _connect(self, on_break):
        connection = connect(
            self.target,
            self._security,
            self.identity,
            self.options,
            next(self._hello_timeouts),
            on_break,
        )
        self._hello_timeouts = itertools.repeat(
            max(
                self.options.hello_timeout_s,
                _HELLO_ROUND_TRIPS * connection.round_trip_s,
            )
        )
        return connection

    def _ends_at(self, deadline_s):
        seconds = self.options.deadline_s if deadline_s is None else deadline_s
        return time.monotonic() + seconds

    def _infer(self, arrays, ends_at, request_id):
        self._count("calls")
        waiting, found, attempt = None, {}, 0
        while True:
            self._stay_away(ends_at)
            connection = self._connector.ready(ends_at)
            attempt += 1
            if waiting is None:
                parts = waiting = self._parts(arrays, connection, request_id)
            waiting, error = self._attempt(waiting, connection, ends_at, found)
            if error is None:
                self._budget.succeeded()
                return join([found[part] for part in parts])
            wait_s = self._wait_s(error, attempt)
            if wait_s is None or time.monotonic() + wait_s >= ends_at:
                raise error
            self._count("retries")
            self._closing.wait(wait_s)

    def _parts(self, arrays, connection, request_id):
        names = [feature.name for feature in self.identity.feature]
        arrays = [arrays[name] for name in names]
        size = min(self.options.max_rows, connection.hello.max_rows)
        # Edges may choose the same ids, and each has to be unique here.
        prefix = f"{request_id[:32]}." if request_id else ""
        return [
            Part(
                [array[start : start + size] for array in arrays],
                self._codec,
                f"{prefix}{secrets.token_hex(4 if prefix else 16)}",
            )
            for start in range(0, len(arrays[0]), size)
        ]

    def _attempt(self, parts, connection, ends_at, found):
        """Sends requests and collects replies.

        Returns the parts without an answer, and the error that says most of
        them, `None` if all have one.
        """
        sent, failed, errors = collections.deque(), [], []

        def collect():
            part, *call = sent.popleft()
            try:
                found[part] = self._collect(part, *call, connection, ends_at)
            except SplitError as error:
                failed.append(part)
                errors.append(error)
                self._look_at(error, connection)
            finally:
                connection.done(part.request_id)
                self._slots.release()

        for part in parts:
            # Whoever holds a slot collects first, or two could wait for each
            # other.
            while sent and not self._slots.acquire(blocking=False):
                collect()
            left_s = ends_at - time.monotonic()
            if not sent and not self._slots.acquire(timeout=max(0.0, left_s)):
                failed.append(part)
                errors.append(_too_late())
                continue
            self._count("attempts")
            content = part.content(connection.hello.generation, left_s)
            future = connection.send(part.request_id, content)
            sent.append((part, future, time.monotonic()))
        while sent:
            collect()
        lasting = [x for x in errors if not isinstance(x, CloudUnavailable)]
        return failed, (lasting or errors or [None])[0]

    def _collect(self, part, future, sent_at, connection, ends_at):
        try:
            reply, num_bytes = future.result(
                max(0.0, ends_at - time.monotonic())
            )
        except TimeoutError:
            if connection.silent_s() >= _STALLED_S:
                self._connector.lost(connection, opens=True)
            raise _too_late() from None
        round_trip_s = time.monotonic() - sent_at
        return part.read(reply, num_bytes, self._expects, round_trip_s)

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
                f"to be left alone for {left_s:.3f} s more.",
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
        if not self._budget.failed() or attempt >= self.options.max_attempts:
            return None
        wait_s = self._backoff.wait_s(attempt)
        if isinstance(error, Overloaded):
            # Never before it said, and not all at the same moment.
            wait_s += error.retry_after_s or 0.0
        return wait_s

    def _count(self, name):
        with self._lock:
            setattr(self._stats, name, getattr(self._stats, name) + 1)


def _too_late():
    return DeadlinePassed(
        "Expected an answer within the deadline. Received: none. Allow a "
        "longer deadline, or look at the network and the cloud worker's load."
    )
