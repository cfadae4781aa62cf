"""What happens around every call: who calls, what goes wrong, what is counted.

A peer is told a status code and a fixed sentence. gRPC would send it the text
of an exception, also of one that its own decoding raises: so messages are
decoded in here.
"""

import asyncio
import contextlib
import contextvars
import inspect
import logging

import grpc
from google.protobuf.message import DecodeError

from cloud_worker.logs import fields, logger
from protos.errors import RETRY_AFTER, WireError, retry_after_ms, status_of
from protos.security import edge_id_of

# Whoever balances load asks for it, and has no token.
_OPEN = "/grpc.health.v1.Health/"
_CALLER = contextvars.ContextVar("caller", default="")
_UNREADABLE = object()


def caller():
    """The id in the certificate of who makes the current call, or nothing."""
    return _CALLER.get()


class Guard(grpc.aio.ServerInterceptor):
    """Stands in front of every method.

    Args:
        security: The `ServerSecurity` that says who may come in.
        metrics: `Metrics`.
    """

    def __init__(self, security, metrics):
        self._security, self._metrics = security, metrics

    async def intercept_service(self, continuation, details):
        handler = await continuation(details)
        if handler is None:
            return None
        method = details.method
        if handler.response_streaming:
            inner = handler.stream_stream or handler.unary_stream
            call = self._streaming(method, inner, handler.request_streaming)
        else:
            call = self._unary(method, handler.unary_unary)
        return _MAKERS[handler.request_streaming, handler.response_streaming](
            call,
            self._reader(handler.request_deserializer),
            self._writer(handler.response_serializer),
        )

    def _unary(self, method, inner):
        async def call(request, context):
            async with self._around(method, context):
                return await inner(_readable(request), context)

        return call

    def _streaming(self, method, inner, has_stream):
        # gRPC lets a method yield its replies or write them by itself.
        yields = inspect.isasyncgenfunction(inner)

        async def call(request, context):
            async with self._around(method, context):
                read = _all_readable if has_stream else _readable
                result = inner(read(request), context)
                if not yields:
                    await result
                    return
                async with contextlib.aclosing(result) as replies:
                    async for reply in replies:
                        await context.write(reply)

        return call

    @contextlib.asynccontextmanager
    async def _around(self, method, context):
        code = grpc.StatusCode.OK
        try:
            self._admit(method, context)
            yield
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.AbortError:
            code = _code_of(context)
            raise
        except Exception as error:
            code, sentence = status_of(error)
            _log(method, context, code, error)
            after = retry_after_ms(error)
            trailing = ((RETRY_AFTER, str(after)),) if after else ()
            await context.abort(code, sentence, trailing)
        finally:
            self._metrics.calls.labels(method, code.name).inc()

    def _admit(self, method, context):
        auth_context = context.auth_context()
        if "x509_common_name" in auth_context:
            _CALLER.set(edge_id_of(auth_context, ""))
        if not method.startswith(_OPEN):
            self._security.check_token(context.invocation_metadata())

    def _reader(self, parse):
        counter = self._metrics.bytes.labels("up")

        def read(data):
            counter.inc(len(data))
            try:
                return parse(data)
            except DecodeError:
                return _UNREADABLE

        return read

    def _writer(self, serialize):
        counter = self._metrics.bytes.labels("down")

        def write(message):
            data = serialize(message)
            counter.inc(len(data))
            return data

        return write


_MAKERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _readable(request):
    if request is _UNREADABLE:
        raise WireError(
            "Expected a message of the protocol. Received: bytes that are "
            "none. Use the same major version on both sides."
        )
    return request


async def _all_readable(requests):
    async for request in requests:
        yield _readable(request)


def _code_of(context):
    code = context.code()
    if isinstance(code, int):
        return next(x for x in grpc.StatusCode if x.value[0] == code)
    return code or grpc.StatusCode.UNKNOWN


def _log(method, context, code, error):
    is_ours = code is grpc.StatusCode.INTERNAL
    logger.log(
        logging.ERROR if is_ours else logging.WARNING,
        "call failed",
        extra=fields(
            method=method,
            code=code.name,
            edge_id=caller(),
            peer=context.peer(),
            reason=str(error),
        ),
        exc_info=error if is_ours else None,
    )
