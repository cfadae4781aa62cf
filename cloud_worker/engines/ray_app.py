"""The service `Split` as a deployment of Ray Serve.

Each replica loads all bundles and has the same parts behind Serve's gRPC proxy
as a `CloudWorker` behind its own port. `build` is what `serve.run` and a
RayService of KubeRay start from; its arguments are settings of the worker.

`@serve.batch` gathers requests for `max_delay_ms`. It forms its batches before
it is their turn, so what it gathered while the stages are busy would run as
many small batches: the worker's own queue joins them, as it does elsewhere.
"""

import asyncio
import logging
import pathlib
import sys
import types

from ray import serve

from cloud_worker import forwarding, logs
from cloud_worker.config import Settings
from cloud_worker.metrics import Metrics
from cloud_worker.service import Service
from keras_earlyexit import memory
from protos import split_pb2
from protos.errors import RETRY_AFTER, retry_after_ms, status_of

#: What Serve's proxy is told, so that it knows the service.
SERVICER = "protos.split_pb2_grpc.add_SplitServicer_to_server"
_UPSCALE_DELAY_S = 3.0


class Gathering:
    """Runs requests that `@serve.batch` has gathered.

    Args:
        runner: A `Runner`.
        max_batch: Requests that are gathered at most.
        max_delay_s: Seconds for which they are.
    """

    def __init__(self, runner, max_batch, max_delay_s):
        @serve.batch(
            max_batch_size=max_batch,
            batch_wait_timeout_s=max_delay_s,
            # Groups of one have to be as many as fill the batches behind.
            max_concurrent_batches=_ongoing(max_batch),
        )
        async def gathered(asked):
            # One that fails must not take the others with it.
            return await asyncio.gather(
                *(runner.run(*each) for each in asked),
                return_exceptions=True,
            )

        self._gathered = gathered

    async def run(self, entrance, arrays, deadline):
        """As `Runner.run`."""
        found = await self._gathered((entrance, arrays, deadline))
        if isinstance(found, BaseException):
            raise found
        return found


class Replica:
    """Answers requests that Serve's gRPC proxy hands on.

    Args:
        settings: The settings of the worker, a dict.
    """

    # Serve waits for it, in the loop in which it calls the methods.
    async def __init__(self, settings):
        memory.keep_freed()
        settings = Settings(**settings)
        logs.configure(settings.log_level, sys.stderr)
        # Gathering waits already.
        queue = settings.model_copy(update={"max_delay_ms": 0.0})
        self._service = Service(
            queue,
            Metrics(),
            forwarding.make(settings),
            runs=lambda runner: Gathering(
                runner, settings.max_batch, settings.max_delay_ms / 1000
            ),
        )
        await self._service.start()

    async def Hello(self, request, grpc_context):
        return await self._call("Hello", request, grpc_context)

    async def Infer(self, request, grpc_context):
        return await self._call("Infer", request, grpc_context)

    async def InferStream(self, requests):
        # Serve takes what is yielded, and the servicer writes.
        written = asyncio.Queue(1)

        async def answer():
            try:
                await self._service.servicer.InferStream(
                    requests, types.SimpleNamespace(write=written.put)
                )
            except Exception as error:
                await written.put(error)
            else:
                await written.put(None)

        answering = asyncio.create_task(answer())
        try:
            while (reply := await written.get()) is not None:
                if isinstance(reply, Exception):
                    raise reply
                yield reply
        finally:
            answering.cancel()

    async def _call(self, method, request, grpc_context):
        """Calls the servicer; Serve would send out an exception's text."""
        call = getattr(self._service.servicer, method)
        try:
            return await call(request, _Context(grpc_context))
        except Exception as error:
            code, sentence = status_of(error)
            if code.name == "INTERNAL":
                logging.exception("call failed")
            grpc_context.set_code(code)
            grpc_context.set_details(sentence)
            after = retry_after_ms(error)
            if after:
                grpc_context.set_trailing_metadata([(RETRY_AFTER, str(after))])
            return _EMPTY[method]()


_EMPTY = {"Hello": split_pb2.HelloReply, "Infer": split_pb2.InferReply}


class _Context:
    """What the servicer asks a call for; behind a proxy it knows less."""

    def __init__(self, grpc_context):
        self._context = grpc_context

    def auth_context(self):
        # Of the proxy: who calls is known to the front, which says so.
        return {}

    def invocation_metadata(self):
        return self._context.invocation_metadata()

    def peer(self):
        return self._context.peer()

    def time_remaining(self):
        # The request itself says it.
        return None


def build(settings):
    """The application for Serve.

    Args:
        settings: Settings of the worker, a dict, as in its file.

    Returns:
        What `serve.run` takes.

    Raises:
        ValueError: If the settings cannot be right.
    """
    return application(
        Settings(**{"engine": "ray", "insecure": True, **settings}), Replica
    )


def application(settings, replica):
    """The same for `Settings`, with the class of replicas."""
    scaling = {"num_replicas": settings.replicas or 1}
    if settings.max_replicas is not None:
        scaling = {
            "num_replicas": None,
            "autoscaling_config": {
                "min_replicas": 1,
                "max_replicas": settings.max_replicas,
                "target_ongoing_requests": settings.replica_target,
                "upscale_delay_s": _UPSCALE_DELAY_S,
                "downscale_delay_s": settings.replica_idle_s,
            },
        }
    deployment = serve.deployment(replica).options(
        name="Split",
        max_ongoing_requests=_ongoing(settings.max_batch),
        max_queued_requests=settings.max_queue,
        graceful_shutdown_timeout_s=settings.grace_s,
        health_check_period_s=2.0,
        **scaling,
    )
    return deployment.bind(_anywhere(settings))


def _ongoing(max_batch):
    """Requests of a replica at the same time."""
    # More than fill a batch: the next one gathers while that runs.
    return 2 * max_batch


def _anywhere(settings):
    """Settings for a process that may have another working folder."""
    found = settings.model_dump(exclude_none=True)
    for name, value in found.items():
        if isinstance(value, pathlib.Path):
            found[name] = str(value.absolute())
    found["bundle"] = [
        str(x.absolute()) if isinstance(x, pathlib.Path) else x
        for x in settings.bundle
    ]
    return found
