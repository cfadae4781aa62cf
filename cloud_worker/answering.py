"""Answers one request: here, or with the help of a further worker."""

import time
from typing import NamedTuple

import numpy as np

from cloud_worker.logs import fields, logger
from protos.errors import SplitError, WireError


class Answer(NamedTuple):
    """The answers for the rows of a request.

    Args:
        predictions: Array (N, ...).
        exit_index: Integer array (N,), counted over the whole model.
        score: Float array (N,); NaN at `final`.
        degraded: Integer array: rows that a further worker should have
            answered and did not.
        queue_s: Seconds that the request waited.
        compute_s: Seconds that its batch ran, and that a further worker took.
    """

    predictions: np.ndarray
    exit_index: np.ndarray
    score: np.ndarray
    degraded: np.ndarray
    queue_s: float
    compute_s: float


class Answering:
    """Runs requests, and sends on what does not leave here.

    Args:
        runner: A `Runner`.
        forwarder: A `Forwarder`, or `None` if there is no further worker.
        metrics: `Metrics`.
    """

    def __init__(self, runner, forwarder, metrics):
        self._runner, self._forwarder = runner, forwarder
        self._metrics = metrics

    async def answer(self, entrance, arrays, deadline, request_id):
        """Answers all rows of a request.

        Args:
            entrance: The `Entrance` that takes them.
            arrays: Tuple of arrays.
            deadline: Until when, by `time.monotonic`.
            request_id: What the request is called in all logs.

        Returns:
            An `Answer`.

        Raises:
            WireError: If the features are beyond what the stages can take.
            SplitError: If there can be no answer for another reason.
        """
        ran = await self._runner.run(entrance, arrays, deadline)
        self._metrics.queue_seconds.observe(ran.queue_s)
        routed, names = ran.routed, entrance.bundle.exit_names
        if not np.isfinite(routed.predictions).all():
            raise WireError(
                "Expected features for which the stages give finite answers. "
                "Received: others. Send what the stage before hands on."
            )
        answer = Answer(
            predictions=routed.predictions,
            exit_index=routed.exit_index,
            score=routed.score,
            degraded=np.empty(0, "int64"),
            queue_s=ran.queue_s,
            compute_s=ran.compute_s,
        )
        if len(routed.staying):
            answer = await self._send_on(
                answer, routed, entrance.generation, deadline, request_id
            )
        self._metrics.rows.inc(len(answer.exit_index))
        if len(answer.degraded):
            self._metrics.degraded.inc(len(answer.degraded))
        for index, count in enumerate(np.bincount(answer.exit_index).tolist()):
            if count:
                self._metrics.exits.labels(names[index]).inc(count)
        return answer

    async def _send_on(self, answer, routed, generation, deadline, request_id):
        rows = routed.staying
        if self._forwarder is None:
            return answer._replace(degraded=rows)
        started = time.monotonic()
        try:
            there = await self._forwarder.ask(
                generation, routed, deadline, request_id
            )
        except SplitError as error:
            logger.warning(
                "not forwarded",
                extra=fields(
                    request_id=request_id,
                    rows=len(rows),
                    error=type(error).__name__,
                    reason=str(error),
                ),
            )
            return answer._replace(degraded=rows)
        self._metrics.forwarded.inc(len(rows))
        merged = [
            _put(here, rows, found)
            for here, found in (
                (answer.predictions, there.predictions),
                (answer.exit_index, there.exit_index),
                (answer.score, there.score),
            )
        ]
        seconds = answer.compute_s + time.monotonic() - started
        return Answer(*merged, rows[there.degraded], answer.queue_s, seconds)


def _put(here, rows, there):
    here = here.copy()
    here[rows] = there
    return here
