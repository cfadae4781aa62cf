"""The calling side of a cut: asks the next worker, within a deadline."""

import concurrent.futures
import dataclasses
import itertools
import threading
import time

from protos.calling.answers import Expects
from protos.calling.asking import Asking
from protos.calling.breaker import CircuitBreaker
from protos.calling.connection import connect
from protos.calling.connector import Connector
from protos.calling.gathering import Gathering
from protos.calling.retry import Backoff
from protos.calling.settings import LinkOptions
from protos.errors import CloudUnavailable
from protos.identity import Identity
from protos.limits import Limits

# Of the time for a hello, until there was one: a far peer needs more, a peer
# that is gone should be asked soon again. Then some round trips, at least 1.
_HELLO_TIMEOUTS = (1, 1, 4)
_HELLO_ROUND_TRIPS = 5


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
        limits = _limits([*identity.feature, prediction], options.max_rows)
        self.options = options = dataclasses.replace(
            options,
            max_rows=limits.max_rows,
            max_message_bytes=limits.max_message_bytes,
        )
        # Files that are wrong are an error now and not at the first sample.
        security.credentials(target)
        self._security = security
        self._hello_timeouts = itertools.cycle(
            options.hello_timeout_s * factor for factor in _HELLO_TIMEOUTS
        )
        self._breaker = CircuitBreaker(probe_every_s=options.probe_every_s)
        backoff = Backoff()
        self._connector = Connector(self._connect, self._breaker, backoff)
        self._asking = Asking(
            self._connector,
            options,
            identity,
            Expects(prediction, identity.first_stage, num_exits),
            backoff,
        )
        self._gathering = Gathering(self._asking.ask)
        self._lock = threading.Lock()
        self._pool = None

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
            **self._asking.counts,
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
                of all workers. Without one it may share a message with
                others that are small, while the worker is busy.

        Returns:
            `Answers`.

        Raises:
            VersionMismatch: If the worker has no part of the same model.
            NotAllowed: If a certificate, a token or an id is wrong.
            CloudUnavailable: If there is no answer in time.
            SplitError: If the worker or the request is broken.
        """
        return self._ask(arrays, self._ends_at(deadline_s), request_id)

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
            try:
                return self._pool.submit(self._ask, arrays, ends_at, request_id)
            except RuntimeError as error:
                # The program ends, and no thread can be started any more.
                future = concurrent.futures.Future()
                future.set_exception(CloudUnavailable(str(error)))
                return future

    def close(self):
        """Closes the connection. Calls under way fail."""
        self._asking.close()
        self._connector.close()
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _ask(self, arrays, ends_at, request_id):
        arrays, rows = self._asking.checked(arrays)
        if request_id:
            return self._asking.ask(arrays, ends_at, request_id)
        return self._gathering.ask(arrays, rows, ends_at)

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


def _limits(specs, max_rows):
    """Limits for as many rows as can be one message."""
    try:
        return Limits.for_specs(specs, max_rows)
    except ValueError:
        if max_rows == 1:
            raise
        return _limits(specs, max_rows // 2)
