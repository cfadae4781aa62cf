"""Keeps one good connection, or knows why there is none.

Connections are made and probed for by a thread of their own, so that no call
pays for finding out that the peer is gone. Each probe is a new connection: one
that a network has swallowed may take TCP minutes to give up.
"""

import threading
import time

from protos.errors import (
    CircuitOpen,
    CloudUnavailable,
    DeadlinePassed,
    NotAllowed,
    SplitError,
    VersionMismatch,
)

_REFUSED_EVERY_S = 2.0


class Connector:
    """Hands out the current connection and replaces it when it is lost.

    Args:
        open_connection: Called with a function to call when the connection
            breaks; returns a `Connection` or raises a `SplitError`.
        breaker: A `CircuitBreaker`.
        backoff: A `Backoff`.
        clock: Called without arguments for a time in seconds.
    """

    def __init__(self, open_connection, breaker, backoff, clock=time.monotonic):
        self._open = open_connection
        self._breaker = breaker
        self._backoff = backoff
        self._clock = clock
        self._changed = threading.Condition()
        self._connection = None
        self._refusal = None
        self._last_error = None
        self._thread = None
        self._is_closed = False

    @property
    def last_error(self):
        """The last `SplitError` of an attempt to connect, or `None`."""
        return self._last_error

    @property
    def is_connected(self):
        """Whether there is a connection now."""
        return self._connection is not None

    def ready(self, ends_at):
        """The current connection; waits for one while that may come in time.

        Args:
            ends_at: When to wait no longer, on the clock.

        Returns:
            A `Connection`.

        Raises:
            VersionMismatch: If the peer has no part of the same model.
            NotAllowed: If the peer and this side do not believe each other.
            CircuitOpen: If the peer is known to be gone.
            DeadlinePassed: If there is none in time.
            CloudUnavailable: If the link is closed.
        """
        with self._changed:
            while True:
                if self._is_closed:
                    raise CloudUnavailable(
                        "Expected an open link. Received: a call after "
                        "`close()`. Make a new one."
                    )
                if self._connection is not None:
                    return self._connection
                self._start()
                if self._refusal is not None:
                    raise self._refusal.with_traceback(None)
                if not self._breaker.allows():
                    raise CircuitOpen(
                        "Expected a cloud worker that answers. Received: no "
                        f"answer so far ({self._last_error}). It is asked "
                        "again from time to time."
                    )
                left_s = ends_at - self._clock()
                if left_s <= 0:
                    raise DeadlinePassed(
                        "Expected a connection within the deadline. "
                        "Received: none yet. Allow a longer deadline."
                    )
                self._changed.wait(left_s)

    def lost(self, connection, opens=False):
        """Notes that a connection is of no use any more.

        Args:
            connection: A `Connection`; nothing happens if it is not the
                current one.
            opens: Whether calls stop at once until a probe is answered.
        """
        with self._changed:
            if connection is not self._connection or self._is_closed:
                return
            self._connection = None
            self._breaker.failed(opens)
            self._start()
        connection.retire()

    def close(self):
        """Closes the connection; nobody connects again."""
        with self._changed:
            self._is_closed = True
            connection, self._connection = self._connection, None
            self._changed.notify_all()
        if connection is not None:
            connection.close()

    def _start(self):
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="split-connector", daemon=True
            )
            self._thread.start()

    def _run(self):
        try:
            self._connect()
        finally:
            with self._changed:
                if self._thread is threading.current_thread():
                    self._thread = None
                self._changed.notify_all()

    def _connect(self):
        """Tries until there is a connection or the link is closed."""
        failures, not_allowed = 0, 0
        while True:
            try:
                connection = self._open(self.lost)
            except (SplitError, ValueError, OSError) as error:
                failures += 1
                # A connection that is cut at a bad moment looks like it too.
                is_refused = isinstance(error, NotAllowed)
                not_allowed = not_allowed + 1 if is_refused else 0
                kept = not_allowed > 1 or isinstance(error, VersionMismatch)
                wait_s = self._failed(error, kept, failures)
            else:
                self._connected(connection)
                return
            if self._wait(wait_s):
                return

    def _failed(self, error, is_kept, failures):
        with self._changed:
            self._last_error = error
            if is_kept:
                self._refusal = error
                # It answers: the circuit is not what keeps calls away.
                self._breaker.succeeded()
                self._changed.notify_all()
                return _REFUSED_EVERY_S
            if isinstance(error, NotAllowed):
                return 0.0
            self._refusal = None
            self._breaker.failed(opens=isinstance(error, DeadlinePassed))
            self._changed.notify_all()
            if self._breaker.allows():
                return self._backoff.wait_s(failures)
            return self._breaker.probe_in_s()

    def _connected(self, connection):
        with self._changed:
            self._last_error = self._refusal = None
            self._breaker.succeeded()
            if not self._is_closed:
                self._connection, connection = connection, None
            # Set here, or a call that loses it at once starts no other.
            self._thread = None
            self._changed.notify_all()
        if connection is not None:
            connection.close()

    def _wait(self, seconds):
        """Waits until the next attempt; returns whether the link is closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._is_closed, seconds)
                if self._is_closed:
                    return True
                if self._breaker.allows() or self._breaker.try_probe():
                    return False
                seconds = self._breaker.probe_in_s()
