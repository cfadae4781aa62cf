"""Keeps calls from waiting for a peer that is gone."""

import threading
import time

CLOSED = "closed"
OPEN = "open"
HALF_OPEN = "half-open"


class CircuitBreaker:
    """A switch that opens when calls fail, so that none waits in vain.

    While it is closed, calls pass. It opens after some failures in a row, or
    at once when told to. While it is open, no call passes; whoever probes asks
    `try_probe` and is the only one to do so until the probe has ended, in a
    success, which closes it, or in a failure.

    Args:
        max_failures: Failures in a row that open it.
        probe_every_s: Seconds between two probes. The first one may be made
            at once: a peer that is only slow costs nobody much.
        clock: Called without arguments for a time in seconds.
    """

    def __init__(self, max_failures=3, probe_every_s=0.5, clock=time.monotonic):
        self._max_failures = max_failures
        self._probe_every_s = probe_every_s
        self._clock = clock
        self._lock = threading.Lock()
        self._state = CLOSED
        self._failures = 0
        self._times_opened = 0
        self._probe_at = 0.0

    @property
    def state(self):
        """`"closed"`, `"open"` or `"half-open"`."""
        return self._state

    @property
    def times_opened(self):
        """How often it went from closed to open."""
        return self._times_opened

    def allows(self):
        """Whether a call may be made."""
        return self._state == CLOSED

    def try_probe(self):
        """Whether the caller may, and then has to, probe now."""
        with self._lock:
            if self._state != OPEN or self._clock() < self._probe_at:
                return False
            self._state = HALF_OPEN
            self._probe_at = self._clock() + self._probe_every_s
            return True

    def probe_in_s(self):
        """Seconds until the next probe may be made."""
        with self._lock:
            return max(0.0, self._probe_at - self._clock())

    def succeeded(self):
        """Notes a call or a probe that was answered."""
        with self._lock:
            self._state = CLOSED
            self._failures = 0

    def failed(self, opens=False):
        """Notes a call or a probe that was not answered.

        Args:
            opens: Whether this one is enough.
        """
        with self._lock:
            self._failures += 1
            if self._state == HALF_OPEN:
                self._state = OPEN
            elif self._state == CLOSED and (
                opens or self._failures >= self._max_failures
            ):
                self._state = OPEN
                self._times_opened += 1
                self._probe_at = self._clock()
