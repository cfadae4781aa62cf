"""Bounds what an edge sends on, whatever its inputs look like.

Inputs can be made, or can turn out, so that none leaves early. Then the cloud
worker would get everything at once; beyond a cap the edge answers by itself.
"""

import threading
import time

#: Rows over which a share may be exceeded for a moment.
_WINDOW_ROWS = 256


class OffloadCap:
    """Token buckets over the rows that are sent on.

    Args:
        rows_per_s: Rows per second, with a burst of one second's worth.
        max_share: Share of all rows, in the long run.
        clock: Called without arguments for a time in seconds.
    """

    def __init__(self, rows_per_s=None, max_share=None, clock=time.monotonic):
        self._rows_per_s = rows_per_s
        self._max_share = max_share
        self._clock = clock
        self._lock = threading.Lock()
        self._burst = max(1.0, rows_per_s or 0.0)
        self._by_time = self._burst
        self._filled_at = clock()
        self._window = max(1.0, _WINDOW_ROWS * (max_share or 0.0))
        self._by_share = self._window

    def take(self, seen, wanted):
        """How many rows of a batch may be sent on.

        Args:
            seen: Rows in the batch.
            wanted: Those that would go on.

        Returns:
            An int from 0 to `wanted`.
        """
        with self._lock:
            allowed = wanted
            if self._rows_per_s is not None:
                now = self._clock()
                gained = (now - self._filled_at) * self._rows_per_s
                self._filled_at = now
                self._by_time = min(self._burst, self._by_time + gained)
                allowed = min(allowed, int(self._by_time))
            if self._max_share is not None:
                gained = seen * self._max_share
                self._by_share = min(self._window, self._by_share) + gained
                allowed = min(allowed, int(self._by_share))
            self._by_time -= allowed
            self._by_share -= allowed
            return allowed
