"""What became of the calls of played edges."""

import dataclasses
import time

import numpy as np

from protos.errors import DeadlinePassed, Overloaded

#: All that can become of a call. Whoever is not answered in time, or turned
#: away, gives its own early answer and says so: that edge is never silent.
OUTCOMES = ("answered", "degraded", "past_deadline", "rejected", "failed")
QUANTILES = (0.5, 0.95, 0.99)


@dataclasses.dataclass
class Tally:
    """Counts outcomes, and keeps the time of every answer.

    Args:
        deadline_s: Seconds that a call may take.
        started: When calls began, by `time.monotonic`.
    """

    deadline_s: float
    started: float = dataclasses.field(default_factory=time.monotonic)
    counts: dict = dataclasses.field(
        default_factory=lambda: dict.fromkeys(OUTCOMES, 0)
    )
    seconds: list = dataclasses.field(default_factory=list)
    lags: list = dataclasses.field(default_factory=list)
    answered_at: list = dataclasses.field(default_factory=list)
    late_replies: int = 0
    first_error: str = ""

    def replied(self, seconds, is_degraded):
        """An answer came; one that comes too late is none any more."""
        if seconds > self.deadline_s:
            self.late_replies += 1
            self.counts["past_deadline"] += 1
            return
        self.counts["degraded" if is_degraded else "answered"] += 1
        self.seconds.append(seconds)
        if not is_degraded:
            self.answered_at.append(time.monotonic() - self.started)

    def failed(self, error):
        """There was no answer."""
        if isinstance(error, (DeadlinePassed, TimeoutError)):
            self.counts["past_deadline"] += 1
        elif isinstance(error, Overloaded):
            self.counts["rejected"] += 1
        else:
            self.counts["failed"] += 1
            self.first_error = self.first_error or str(error)

    @property
    def offered(self):
        """Calls that have ended, one way or the other."""
        return sum(self.counts.values())

    def facts(self, seconds):
        """What to tell, a dict of plain values.

        Args:
            seconds: For how long calls were made.
        """
        times = self.seconds or [float("nan")]
        lag = np.quantile(self.lags, 0.99) if self.lags else 0.0
        return {
            "offered": self.offered,
            **self.counts,
            "offered_per_second": self.offered / seconds,
            # What is answered afterwards does not make it faster.
            "answered_per_second": sum(at <= seconds for at in self.answered_at)
            / seconds,
            **{
                f"p{100 * q:g}_ms": 1e3 * float(np.quantile(times, q))
                for q in QUANTILES
            },
            "slowest_answer_ms": 1e3 * float(np.max(times)),
            "replies_past_deadline": self.late_replies,
            "player_lag_p99_ms": 1e3 * float(lag),
            "first_error": self.first_error,
        }
