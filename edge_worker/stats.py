"""What an edge worker counts."""

import collections
import threading

from edge_worker.results import ANSWERED_BY


class Stats:
    """Counts of an edge worker since it started."""

    def __init__(self):
        self._lock = threading.Lock()
        self._answered = dict.fromkeys(ANSWERED_BY, 0)
        self._errors = collections.Counter()
        self._exits = collections.Counter()
        self._capped = self._calls = self._up = self._down = 0

    def answered(self, result):
        """Counts a `SplitResult`."""
        with self._lock:
            self._calls += 1
            self._up += result.bytes_up
            self._down += result.bytes_down
            self._exits.update(result.exit_index.tolist())
            for name, count in result.counts.items():
                self._answered[name] += count

    def failed(self, error):
        """Counts a batch whose samples the cloud worker did not answer."""
        with self._lock:
            self._errors[type(error).__name__] += 1

    def capped(self, rows):
        """Counts samples that the cap has kept here."""
        with self._lock:
            self._capped += rows

    def as_dict(self):
        """All counts, as plain values."""
        with self._lock:
            return {
                "calls": self._calls,
                "rows": sum(self._answered.values()),
                "answered_by": dict(self._answered),
                "exits": dict(sorted(self._exits.items())),
                "rows_over_cap": self._capped,
                "errors": dict(self._errors),
                "bytes_up": self._up,
                "bytes_down": self._down,
            }
