"""How much may be on the way to who answers.

What is handed to a connection waits in its buffers, which are large: on a
slow link they hold half a minute, behind which the pings come too late that
tell a slow link from a dead one. All of it would be sent a second time. So no
more is handed over than keeps the link busy, which is what the link carries
while a message is on its way and answered (Cardwell et al., BBR, ACM Queue
14(5), 2016).
"""

import collections
import threading
import time
from typing import NamedTuple

#: Over the least that fills the link: so a link that can do more is noticed.
_GAIN = 2.0
#: What goes on in both machines beside it may delay answers for so long.
_SLACK_S = 0.5
#: One is on the link while the other is answered.
_FEWEST = 2
_REMEMBERED = 10


class _Sent(NamedTuple):
    """A message that was not answered yet.

    Args:
        sequence: Its number.
        num_bytes: Bytes of it.
        at: When it was sent.
        delivered: Bytes that had been answered by then.
        on_the_way: Bytes that were not, with its own.
    """

    sequence: int
    num_bytes: int
    at: float
    delivered: int
    on_the_way: int


class Window:
    """Messages that were sent and not answered. For several threads.

    Args:
        clock: Returns seconds that never go back.
    """

    def __init__(self, clock=time.monotonic):
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting = collections.deque()
        self._num_bytes = 0
        self._delivered = 0
        self._rates = collections.deque(maxlen=_REMEMBERED)
        self._shortest_s = None
        self._most = 0
        #: The shortest time until a message was answered; `None` without one.
        self.fastest_s = None

    @property
    def is_empty(self):
        """Whether everything that was sent was answered."""
        return not self._waiting

    def wait(self, num_bytes, timeout_s):
        """Waits until a message may be sent.

        Args:
            num_bytes: Bytes of it.
            timeout_s: Seconds to wait at most.

        Returns:
            Whether it may.
        """
        with self._changed:
            return self._changed.wait_for(
                lambda: (
                    len(self._waiting) < _FEWEST
                    or self._num_bytes + num_bytes <= self._limit()
                ),
                timeout_s,
            )

    def sent(self, sequence, num_bytes):
        """Notes a message.

        Args:
            sequence: Its number, above those before.
            num_bytes: Bytes of it.
        """
        with self._changed:
            self._num_bytes += num_bytes
            self._waiting.append(
                _Sent(
                    sequence,
                    num_bytes,
                    self._clock(),
                    self._delivered,
                    self._num_bytes,
                )
            )

    def answered(self, sequence):
        """Notes that all messages below a number were answered.

        Args:
            sequence: The number.
        """
        with self._changed:
            now = self._clock()
            while self._waiting and self._waiting[0].sequence < sequence:
                sent = self._waiting.popleft()
                self._num_bytes -= sent.num_bytes
                self._delivered += sent.num_bytes
                seconds = max(now - sent.at, 1e-6)
                delivered = self._delivered - sent.delivered
                self._rates.append(delivered / seconds)
                self._shortest_s = min(seconds, self._shortest_s or seconds)
                self.fastest_s = min(seconds, self.fastest_s or seconds)
                # Answers that come in a bunch look like a fast link: it has
                # to last for a few rounds to be one.
                self._most = _GAIN * sent.on_the_way
            if not self._waiting:
                # After a pause the link may be another one: it is felt for
                # anew, or what it has carried once would be sent in one go.
                self._rates.clear()
                self._shortest_s = None
            self._changed.notify_all()

    def _limit(self):
        if self._shortest_s is None:
            return 0
        seconds = _GAIN * self._shortest_s + _SLACK_S
        return min(max(self._rates) * seconds, self._most)
