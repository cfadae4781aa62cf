"""The port in front of an engine whose own has neither TLS nor health.

Requests go on as the bytes that they are, each as a call of its own: those of
one stream run on all replicas, and one that is lost with its replica is asked
again, which changes nothing, since answering has no effects.
"""

import asyncio
import time

import grpc

from cloud_worker.endpoint import SERVICE
from cloud_worker.in_flight import InFlight
from protos import split_pb2
from protos.errors import (
    CloudFailed,
    CloudUnavailable,
    DeadlinePassed,
    VersionMismatch,
    WireError,
    from_rpc_error,
    status_message,
    status_of,
)
from protos.options import channel_options
from protos.security import edge_id_of

#: What the application is called; one engine may have others.
APPLICATION = "split"
#: How often one request is asked, should replicas be lost meanwhile.
MAX_ATTEMPTS = 4
_WAIT_S = 0.05
_HELLO_S = 10.0
# A worker that is there has said this itself: asking again would not help.
_OWN = {status_of(kind(""))[1] for kind in (WireError, DeadlinePassed)} | {
    status_of(Exception())[1]
}


class Front:
    """Hands the calls of edges on. To be used from one event loop.

    Args:
        target: `"host:port"` of the engine, on loopback.
        metrics: `Metrics`.
        max_message_bytes: Largest message, both ways.
        max_deadline_s: The most seconds that a request is given.
    """

    def __init__(self, target, metrics, max_message_bytes, max_deadline_s):
        self._channel = grpc.aio.insecure_channel(
            target, channel_options(max_message_bytes)
        )
        self._metadata = (("application", APPLICATION),)
        self._hello = self._channel.unary_unary(
            f"/{SERVICE}/Hello",
            request_serializer=split_pb2.HelloRequest.SerializeToString,
            response_deserializer=split_pb2.HelloReply.FromString,
        )
        self._infer = self._channel.unary_unary(f"/{SERVICE}/Infer")
        self._health = self._channel.unary_unary(
            "/ray.serve.RayServeAPIService/Healthz"
        )
        self.in_flight = InFlight(metrics)
        self._max_deadline_s = max_deadline_s

    def add_to(self, server):
        """Adds the service to a `grpc.aio.Server`."""
        raw = {"request_deserializer": bytes, "response_serializer": bytes}
        handlers = {
            "Hello": grpc.unary_unary_rpc_method_handler(
                self.hello,
                split_pb2.HelloRequest.FromString,
                split_pb2.HelloReply.SerializeToString,
            ),
            "Infer": grpc.unary_unary_rpc_method_handler(self.infer, **raw),
            "InferStream": grpc.stream_stream_rpc_method_handler(
                self.infer_stream, **raw
            ),
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers),)
        )

    async def hello(self, request, context):
        # Behind this nobody sees a certificate.
        request.edge_id = edge_id_of(context.auth_context(), request.edge_id)
        left_s = context.time_remaining()
        seconds = _HELLO_S if left_s is None else min(left_s, _HELLO_S)
        return await self._ask(
            self._hello, lambda _: request, time.monotonic() + seconds
        )

    async def infer(self, data, context):
        return await self._answer(data, _read(data), context.time_remaining())

    async def infer_stream(self, stream, context):
        await self.in_flight.stream(self._answer_always, stream, context.write)

    async def works(self):
        """Whether the engine says that it does."""
        try:
            await self._health(b"", timeout=_HELLO_S)
        except grpc.RpcError:
            return False
        return True

    async def close(self):
        """Closes the connection to the engine."""
        await self._channel.close()

    async def _answer_always(self, data):
        """Answers a request of a stream, which goes on after an error."""
        request = _read(data)
        try:
            return await self._answer(data, request, None)
        except Exception as error:
            return split_pb2.InferReply(
                request_id=request.request_id, status=status_message(error)
            ).SerializeToString()

    async def _answer(self, data, request, remaining_s):
        seconds = self._max_deadline_s
        if request.timeout_ms:
            seconds = min(seconds, request.timeout_ms / 1000)
        if remaining_s is not None:
            seconds = min(seconds, remaining_s)
        with self.in_flight:
            return await self._ask(
                self._infer,
                lambda left_s: data + _timeout(left_s),
                time.monotonic() + seconds,
            )

    async def _ask(self, method, message, ends_at):
        """Asks until there is an answer, or asking does not help."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            left_s = ends_at - time.monotonic()
            if left_s <= 0:
                raise DeadlinePassed("The deadline passed at the engine.")
            try:
                return await method(
                    message(left_s), timeout=left_s, metadata=self._metadata
                )
            except grpc.aio.AioRpcError as failed:
                error = from_rpc_error(failed)
                if attempt == MAX_ATTEMPTS or not _may_help(failed, error):
                    raise error from failed
            await asyncio.sleep(_WAIT_S * 2**attempt)


def _may_help(failed, error):
    """Whether another replica may answer what this one has not."""
    if failed.details() in _OWN:
        return False
    # Of replicas that look at the same folder, one sees a change first.
    return isinstance(error, (CloudFailed, CloudUnavailable, VersionMismatch))


def _read(data):
    try:
        return split_pb2.InferRequest.FromString(data)
    except Exception as error:
        raise WireError(
            "Expected a message of the protocol. Received: bytes that are "
            "none. Use the same major version on both sides."
        ) from error


def _timeout(left_s):
    """Bytes that, behind a request, replace its `timeout_ms`."""
    left_ms = max(1, int(1000 * left_s))
    return split_pb2.InferRequest(timeout_ms=left_ms).SerializeToString()
