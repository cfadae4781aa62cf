"""Small calls that come while the peer is busy are sent as one message.

A message costs both sides the same time whatever it holds, which for a small
batch is as much as its stages take. So calls that would only wait in the
peer's queue wait here for each other instead, for no longer than they would
have waited there, as its last reply has told: a lone call, and one to a peer
that is idle, is sent at once.
"""

import concurrent.futures
import dataclasses
import threading
import time

import numpy as np

from protos.errors import WireError

#: Features in one message, decoded: copying more of them together costs more
#: than a message does.
_MAX_BYTES = 1 << 20
#: Whatever the peer's queue is like.
_MAX_WAIT_S = 0.02
#: Calls whose deadlines differ by more are not sent together.
_SAME_DEADLINE_S = 0.1


class _Group:
    """Calls that leave together; the thread of the first sends them."""

    def __init__(self, kind, ends_at):
        self._kind, self.ends_at = kind, ends_at
        self.calls, self.counts, self.futures = [], [], []
        self._num_bytes = 0

    def takes(self, kind, num_bytes, ends_at):
        """Whether one more call fits."""
        return (
            kind == self._kind
            and self._num_bytes + num_bytes <= _MAX_BYTES
            and 0 <= ends_at - self.ends_at <= _SAME_DEADLINE_S
        )

    def add(self, arrays, rows, num_bytes):
        """Takes a call in; returns the future of its answers."""
        self.calls.append(arrays)
        self.counts.append(rows)
        self.futures.append(concurrent.futures.Future())
        self._num_bytes += num_bytes
        return self.futures[-1]

    def arrays(self):
        """What all of them send."""
        if len(self.calls) == 1:
            return self.calls[0]
        return [np.concatenate(part) for part in zip(*self.calls, strict=True)]


class Gathering:
    """Asks for several small batches at once where that costs nobody time.

    For any thread.

    Args:
        ask: Called with a list of arrays and with a time by the clock, until
            when it has to return `Answers` or raise a `SplitError`.
        clock: Called without arguments for a time in seconds.
    """

    def __init__(self, ask, clock=time.monotonic):
        self._ask = ask
        self._clock = clock
        self._changed = threading.Condition()
        self._group = None
        self._num_out = 0
        self._busy_s = 0.0

    def ask(self, arrays, rows, ends_at):
        """The answers for a batch.

        Args:
            arrays: List of arrays with equally many rows.
            rows: How many, at least one.
            ends_at: Until when, by the clock.

        Returns:
            `Answers`. The bytes of a message are shared by rows, its seconds
            are everybody's.

        Raises:
            SplitError: If there are none in time.
        """
        num_bytes = sum(array.nbytes for array in arrays)
        if num_bytes > _MAX_BYTES // 2:
            return self._ask(arrays, ends_at)
        with self._changed:
            # Most calls of an edge that answers one sample after another.
            is_alone = self._group is None and not self._num_out
            if is_alone:
                self._num_out = 1
        if is_alone:
            return self._ask_out(arrays, ends_at)
        kind = [(array.dtype, array.shape[1:]) for array in arrays]
        with self._changed:
            group = self._group
            sends = group is None or not group.takes(kind, num_bytes, ends_at)
            if sends:
                # Whoever waits with a group that was not taken leaves.
                self._changed.notify_all()
                self._group = group = _Group(kind, ends_at)
            future = group.add(arrays, rows, num_bytes)
            if sends:
                self._changed.wait_for(
                    lambda: not self._num_out or self._group is not group,
                    min(self._busy_s, ends_at - self._clock()),
                )
                if self._group is group:
                    self._group = None
                self._num_out += 1
        if sends:
            self._send(group)
        try:
            return future.result()
        except (WireError, ValueError):
            if len(group.calls) == 1:
                raise
        # What is wrong with one of them is not the others' fault.
        return self._ask(arrays, ends_at)

    def _send(self, group):
        answers = error = None
        try:
            answers = self._ask_out(group.arrays(), group.ends_at)
        except Exception as failure:
            error = failure
        for position, future in enumerate(group.futures):
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(_share(answers, group.counts, position))

    def _ask_out(self, arrays, ends_at):
        """Asks, after which others may leave who have waited for that."""
        busy_s = 0.0
        try:
            answers = self._ask(arrays, ends_at)
            busy_s = min(answers.seconds["cloud_queue"], _MAX_WAIT_S)
            return answers
        finally:
            with self._changed:
                self._num_out -= 1
                self._busy_s = busy_s
                self._changed.notify_all()


def _share(answers, counts, position):
    """The answers for one of several batches in a message."""
    if len(counts) == 1:
        return answers
    start = sum(counts[:position])
    end = start + counts[position]
    total = sum(counts)

    def bytes_of(num_bytes):
        # Rounded so that all shares add up to the whole.
        return num_bytes * end // total - num_bytes * start // total

    return dataclasses.replace(
        answers,
        predictions=answers.predictions[start:end],
        exit_index=answers.exit_index[start:end],
        score=answers.score[start:end],
        degraded=answers.degraded[start:end],
        bytes_up=bytes_of(answers.bytes_up),
        bytes_down=bytes_of(answers.bytes_down),
        seconds=dict(answers.seconds),
    )
