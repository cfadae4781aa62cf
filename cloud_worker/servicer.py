"""The service `Split`: decode, call, encode."""

import logging
import time

import grpc

from cloud_worker import messages
from cloud_worker.in_flight import InFlight, code_of
from cloud_worker.interceptors import caller
from cloud_worker.logs import fields, logger
from protos import split_pb2, split_pb2_grpc
from protos.errors import status_message
from protos.identity import Identity, difference, protocol_differences
from protos.security import edge_id_of
from protos.tensors import decode_all
from protos.training import EDGE_ID

_MAX_LOGGED = 256


class SplitServicer(split_pb2_grpc.SplitServicer):
    """Answers edge workers.

    Args:
        registry: A `Registry` with what is served.
        answering: An `Answering`.
        metrics: `Metrics`.
        max_deadline_s: The most seconds that a request is given.
        raw_input: Whether the model's own input is taken.
        trainer: A `Trainer`, or `None` where nothing is trained.
    """

    def __init__(
        self,
        registry,
        answering,
        metrics,
        max_deadline_s=60.0,
        raw_input=False,
        trainer=None,
    ):
        self._registry, self._answering = registry, answering
        self._metrics = metrics
        self.in_flight = InFlight(metrics)
        self._max_deadline_s = max_deadline_s
        self._raw_input = raw_input
        self._trainer = trainer

    async def Hello(self, request, context):
        edge_id = edge_id_of(context.auth_context(), request.edge_id)
        if request.mode == split_pb2.TRAIN and self._trainer is not None:
            return await self._trainer.hello(request, edge_id)
        entrance, found = self._meet(request)
        _log_hello(request, edge_id, context.peer(), found)
        return messages.hello_reply(entrance, found)

    async def Infer(self, request, context):
        return await self._answer(request, context.time_remaining())

    async def InferStream(self, requests, context):
        await self.in_flight.stream(
            self._answer_always, requests, context.write
        )

    async def Train(self, requests, context):
        if self._trainer is None:
            await context.abort(
                grpc.StatusCode.UNIMPLEMENTED, "Nothing is trained here."
            )
        edge_id = self._trains(context)
        async for reply in self._trainer.train(requests, edge_id):
            yield reply

    async def Average(self, request, context):
        if self._trainer is None:
            await context.abort(
                grpc.StatusCode.UNIMPLEMENTED, "Nothing is trained here."
            )
        return await self._trainer.average(request, self._trains(context))

    async def Publish(self, request, context):
        if self._trainer is None:
            await context.abort(
                grpc.StatusCode.UNIMPLEMENTED, "Nothing is trained here."
            )
        return await self._trainer.publish(request, self._trains(context))

    def _trains(self, context):
        """The id of the edge that makes a call of training."""
        claimed = dict(context.invocation_metadata()).get(EDGE_ID, "")
        return edge_id_of(context.auth_context(), claimed)

    def _meet(self, request):
        """The entrance for an edge, or what differs."""
        versions = request.protocol_major, request.protocol_minor
        found = protocol_differences(versions)
        if found:
            return None, found
        identity = Identity.of_hello(request)
        if identity.first_stage == 0 and not self._raw_input:
            return None, (difference("raw input", "sent", "not taken"),)
        return self._registry.match(identity)

    async def _answer_always(self, request):
        """Answers a request of a stream, which goes on after an error."""
        try:
            return await self._answer(request, None)
        except Exception as error:
            return split_pb2.InferReply(
                request_id=request.request_id,
                status=status_message(error),
            )

    async def _answer(self, request, remaining_s):
        started = time.monotonic()
        deadline = started + self._seconds(request, remaining_s)
        answer = error = None
        try:
            with self.in_flight:
                entrance = self._registry.find(request.generation)
                with self._registry.using(entrance):
                    arrays = decode_all(
                        request.tensors,
                        entrance.identity.feature,
                        entrance.limits,
                    )
                    answer = await self._answering.answer(
                        entrance, arrays, deadline, request.request_id
                    )
                    return messages.infer_reply(request, answer)
        except BaseException as failure:
            error = failure
            raise
        finally:
            self._metrics.request_seconds.labels(code_of(error)).observe(
                time.monotonic() - started
            )
            if logger.isEnabledFor(logging.INFO):
                _log_request(request, started, answer, error)

    def _seconds(self, request, remaining_s):
        """What is left until nobody waits for the answer."""
        seconds = self._max_deadline_s
        if request.timeout_ms:
            seconds = min(seconds, request.timeout_ms / 1000)
        return seconds if remaining_s is None else min(seconds, remaining_s)


def _log_request(request, started, answer, error):
    notes = {}
    if error is not None:
        notes = {"reason": str(error)}
    else:
        notes = {
            "rows": len(answer.exit_index),
            "degraded": len(answer.degraded),
            "queue_ms": round(1e3 * answer.queue_s, 3),
            "compute_ms": round(1e3 * answer.compute_s, 3),
        }
    logger.info(
        "request",
        extra=fields(
            # Anybody can have made them.
            request_id=request.request_id[:_MAX_LOGGED],
            edge_id=caller(),
            generation=request.generation[:_MAX_LOGGED],
            code=code_of(error),
            ms=round(1e3 * (time.monotonic() - started), 3),
            **notes,
        ),
    )


def _log_hello(request, edge_id, peer, found):
    logger.info(
        "hello refused" if found else "hello",
        extra=fields(
            edge_id=edge_id,
            peer=peer,
            library_version=request.library_version[:64],
            differences=[x._asdict() for x in found],
        ),
    )
