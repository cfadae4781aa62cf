"""Has the edge's own segment averaged with those of other edges, now and then.

Weights go up, their mean comes down; the optimizer and its state stay. It is
the one thing besides a full journal that an edge waits for, and that wait has
an end: without an answer it goes on with the weights that it has.
"""

import threading
import time

import keras

from keras_earlyexit import snapshots
from protos import averaging, split_pb2
from protos.calling.retry import Backoff
from protos.errors import CloudFailed, CloudUnavailable, Refused

_MARGIN_S = 10.0


class Averaging:
    """Rounds of averaging, as one edge sees them.

    Args:
        segment: The edge's `SegmentModel`.
        every: Batches from one round to the next.
        patience_s: Seconds without an answer after which a round is left
            out, besides those that a round may last.
        backoff: A `Backoff`.

    Raises:
        ValueError: If `every` is not positive.
    """

    def __init__(self, segment, every, patience_s=60.0, backoff=None):
        if type(every) is not int or every < 1:
            raise ValueError(
                "Expected average_every to be a number of batches, 1 or more. "
                f"Received: {every!r} (of type {type(every).__name__})."
            )
        self._variables = snapshots.float_weights(segment)
        self._shapes = [tuple(v.shape) for v in self._variables]
        self._every, self._patience_s = every, patience_s
        self._backoff = backoff or Backoff(0.05, 2.0)
        self.restore(None)

    @property
    def form(self):
        """SHA-256 of the form of what is averaged."""
        return averaging.form_sha256(self._shapes)

    @property
    def state(self):
        """What has to outlast the process, a dict that JSON can hold."""
        return {
            "offers": self._offers,
            "at": self._at,
            "samples": self._samples,
            "has_joined": self._has_joined,
            "rounds": self.rounds,
            "skipped": self.skipped,
        }

    def restore(self, state):
        """Goes back to a `state`; `None` is that of the start."""
        state = state or {}
        self._offers = state.get("offers", 0)
        self._at = state.get("at", 0)
        self._samples = state.get("samples", 0)
        self._has_joined = state.get("has_joined", False)
        #: Averages that were taken over.
        self.rounds = state.get("rounds", 0)
        #: Rounds without an answer, or with too few edges.
        self.skipped = state.get("skipped", 0)

    def learned(self, samples):
        """Counts samples of a step."""
        self._samples += samples

    def is_due(self, sequence, at_end=False):
        """Whether there is something to do before batch `sequence`.

        Args:
            sequence: Number of the batch.
            at_end: Whether there is none any more.
        """
        since = sequence - self._at
        return (
            not self._has_joined
            or since >= self._every
            or (at_end and since > 0)
        )

    def run(self, sequence, sender):
        """Offers the weights and takes the average over.

        At the start there is nothing to offer: who joins late begins with
        what the others have come to.

        Args:
            sequence: Number of the batch that is next.
            sender: The `Sender`.

        Raises:
            SplitError: If the cloud worker refuses.
        """
        offers = self._has_joined
        number = self._offers + 1 if offers else 0
        request = averaging.offer(
            sender.generation,
            sender.run,
            number,
            self._samples if offers else 0,
            self._vector() if offers else None,
        )
        vector = self._ask(request, sender)
        if vector is not None:
            for variable, array in zip(
                self._variables,
                averaging.part(vector, self._shapes),
                strict=True,
            ):
                variable.assign(array)
        self._has_joined = True
        if offers:
            self._offers, self._at, self._samples = number, sequence, 0
            self.rounds += vector is not None
            self.skipped += vector is None

    def _vector(self):
        return averaging.join(
            [keras.ops.convert_to_numpy(v.value) for v in self._variables]
        )

    def _ask(self, request, sender):
        """The newest average; `None` if there is none."""
        ends_at, failures = time.monotonic() + self._patience_s, 0
        while True:
            sender.check()
            try:
                reply = sender.ask(
                    "Average", request, split_pb2.AverageReply, _seconds
                )
            except (CloudUnavailable, CloudFailed):
                failures += 1
                if time.monotonic() > ends_at:
                    return None
                threading.Event().wait(self._backoff.wait_s(failures))
            else:
                return averaging.read(
                    reply, reply.round, averaging.num_numbers(self._shapes)
                )


def _seconds(hello):
    """How long to wait for the end of a round."""
    if not hello.average_wait_s:
        raise Refused(
            "Expected a cloud worker that averages the edges' weights. "
            "Received: one that does not. Start it with --average-quorum, or "
            "leave out average_every."
        )
    return hello.average_wait_s + _MARGIN_S
