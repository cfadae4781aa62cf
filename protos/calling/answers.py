"""What a link is asked and what it answers, as arrays and as messages."""

import dataclasses
import time

import numpy as np

from protos import split_pb2
from protos.errors import WireError, from_status
from protos.identity import Feature
from protos.tensors import decode, encode

_EXIT_INDEX = {
    split_pb2.INT32: Feature("exit_index", (None,), "int32"),
    split_pb2.INT64: Feature("exit_index", (None,), "int64"),
}
_SCORE = Feature("score", (None,), "float32")
SECONDS = ("encode", "link", "cloud_queue", "cloud_compute", "decode")


@dataclasses.dataclass(frozen=True)
class Answers:
    """What the next worker says of a batch.

    Args:
        predictions: Array (N, ...).
        exit_index: Integer array (N,), counted over the whole model.
        score: Float array (N,); NaN at `final`.
        degraded: Boolean array (N,): rows that a further worker would have
            answered if it had been there.
        bytes_up: Bytes of the requests, each attempt counted.
        bytes_down: Bytes of the replies.
        seconds: Dict of what took how long: `encode`, `link`, `cloud_queue`,
            `cloud_compute`, `decode`.
    """

    predictions: np.ndarray
    exit_index: np.ndarray
    score: np.ndarray
    degraded: np.ndarray
    bytes_up: int
    bytes_down: int
    seconds: dict

    def __len__(self):
        return len(self.exit_index)


class Part:
    """The rows of one request, and what is known of them so far.

    Args:
        arrays: Tuple of arrays with equally many rows, in the order of the
            stage's inputs.
        codec: A `Codec`.
        request_id: Id of the request.
    """

    def __init__(self, arrays, codec, request_id):
        self.rows = len(arrays[0])
        self.request_id = request_id
        self._arrays, self._codec = arrays, codec
        self.bytes_up = 0
        self.seconds = dict.fromkeys(SECONDS, 0.0)

    def content(self, generation, left_s):
        """Bytes of the request, for one attempt.

        They are made anew each time: kept until there is an answer, they
        would be in memory besides the arrays.
        """
        started = time.monotonic()
        request = split_pb2.InferRequest(
            request_id=self.request_id,
            generation=generation,
            timeout_ms=max(1, int(left_s * 1000)),
        )
        for array in self._arrays:
            encode(array, self._codec, message=request.tensors.add())
        content = request.SerializeToString()
        self.bytes_up += len(content)
        self.seconds["encode"] += time.monotonic() - started
        return content

    def read(self, reply, num_bytes, expects, round_trip_s):
        """The answers in a reply.

        Args:
            reply: An `InferReply`.
            num_bytes: Its size.
            expects: An `Expects`.
            round_trip_s: Seconds from the request to the reply.

        Returns:
            `Answers`.

        Raises:
            SplitError: What the reply says is wrong.
            WireError: If the reply cannot be right.
        """
        if reply.status.code:
            raise from_status(reply.status)
        started = time.monotonic()
        arrays = expects.read(reply, self.rows)
        queue_s, compute_s = reply.queue_us / 1e6, reply.compute_us / 1e6
        self.seconds.update(
            link=max(0.0, round_trip_s - queue_s - compute_s),
            cloud_queue=queue_s,
            cloud_compute=compute_s,
            decode=time.monotonic() - started,
        )
        return Answers(*arrays, self.bytes_up, num_bytes, self.seconds)


@dataclasses.dataclass(frozen=True)
class Expects:
    """What replies have to hold.

    Args:
        prediction: Spec of the predictions, with `.name`, `.shape`, `.dtype`.
        first_stage: The exits before it cannot answer.
        num_exits: Exits of the whole model, `final` included.
    """

    prediction: object
    first_stage: int
    num_exits: int

    def read(self, reply, rows):
        """Predictions, exit index, score and degraded; or a `WireError`."""
        predictions = decode(reply.predictions, self.prediction, rows)
        spec = _EXIT_INDEX.get(
            reply.exit_index.dtype, _EXIT_INDEX[split_pb2.INT64]
        )
        exit_index = decode(reply.exit_index, spec, rows).astype(np.int64)
        score = decode(reply.score, _SCORE, rows, finite=False)
        lengths = {len(predictions), len(exit_index), len(score)}
        rows_found = list(reply.degraded)
        last = int(exit_index.max())
        if (
            lengths != {rows}
            or exit_index.min() < self.first_stage
            or last >= self.num_exits
            or len(rows_found) > rows
            or max(rows_found, default=0) >= rows
        ):
            raise WireError(
                f"Expected answers for {rows} rows, from exits "
                f"{self.first_stage} to {self.num_exits - 1}. Received: "
                f"answers for {sorted(lengths)} rows, from exits "
                f"{exit_index.min()} to {last}. Both sides need "
                "parts of the same model."
            )
        degraded = np.zeros(rows, bool)
        if rows_found:
            degraded[rows_found] = True
        score = np.array(score)
        if last == self.num_exits - 1:
            # There is none at `final`, whatever crossed the wire for it.
            score[exit_index == last] = np.nan
        return predictions, exit_index, score, degraded


def join(parts):
    """The `Answers` of consecutive parts as one."""
    if len(parts) == 1:
        return parts[0]
    arrays = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("predictions", "exit_index", "score", "degraded")
    )
    return Answers(
        *arrays,
        bytes_up=sum(part.bytes_up for part in parts),
        bytes_down=sum(part.bytes_down for part in parts),
        seconds={
            name: sum(part.seconds[name] for part in parts) for name in SECONDS
        },
    )
