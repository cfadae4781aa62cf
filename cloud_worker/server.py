"""A worker as a whole: what it consists of, how it starts and how it ends."""

import asyncio
import contextlib
import signal

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cloud_worker import generations, loading
from cloud_worker.answering import Answering
from cloud_worker.batching import Queue
from cloud_worker.interceptors import Guard
from cloud_worker.logs import fields, logger, start_logger
from cloud_worker.metrics import Metrics
from cloud_worker.running import Runner
from cloud_worker.servicer import SplitServicer
from keras_earlyexit.bundle.watching import Watch
from protos import split_pb2, split_pb2_grpc
from protos.errors import SplitError
from protos.limits import Limits
from protos.options import server_options
from protos.security import ServerSecurity

SERVICE = split_pb2.DESCRIPTOR.services_by_name["Split"].full_name
#: What the health service calls the part that trains.
TRAIN = "train"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
# A newer generation may have larger features than those at the start.
_LEAST_MESSAGE_BYTES = 4 << 20
# One connection carries all calls of an edge.
_MAX_STREAMS = 1024
_HOUSEKEEPING_S = 1.0


class CloudWorker:
    """Serves bundles over gRPC. To be used from one event loop.

    Args:
        settings: `Settings`.
        forwarder: A `Forwarder`, or `None` if there is no further worker.
        trainer: A `Trainer` that trains beside, or `None`.

    Raises:
        ValueError: If the settings for security do not go together.
    """

    def __init__(self, settings, forwarder=None, trainer=None):
        self._settings = settings
        self._security = ServerSecurity(
            cert=settings.tls_cert,
            key=settings.tls_key,
            client_ca=settings.client_ca,
            token_file=settings.token_file,
            insecure=settings.insecure,
        )
        self._credentials = self._security.credentials(settings.listen)
        self._forwarder, self._trainer = forwarder, trainer
        self.metrics = Metrics()
        self._runner = Runner(settings.workers, self.metrics.ran)
        self._registry = generations.Registry(
            settings.drain_s, settings.max_generations
        )
        self._watch = Watch(settings.bundle)
        self._max_message_bytes = None
        self._reload = asyncio.Event()
        self._closing = contextlib.AsyncExitStack()
        self.port = self.metrics_port = None
        self.metrics.queued.set_function(lambda: self._runner.rows)
        self.metrics.generations.set_function(
            lambda: len(self._registry.generations)
        )

    async def start(self):
        """Loads everything and starts to answer.

        Raises:
            ValueError: If a bundle is not what it should be.
            OSError: If a port cannot be used.
        """
        loaded = [await self._load(path) for path in self._settings.bundle]
        self._max_message_bytes = max(map(_message_bytes, loaded))
        if self._trainer is not None:
            self._max_message_bytes = max(
                self._max_message_bytes, self._trainer.max_message_bytes
            )
        for generation in loaded:
            self._registry.add(generation)
        await self._start_server()
        self._start_metrics()
        keeping = asyncio.create_task(self._keep_house())
        self._closing.callback(keeping.cancel)
        start_logger.info(
            f"listening on {self.address}",
            extra=fields(
                address=self.address,
                metrics_port=self.metrics_port,
                generations=[x.name for x in self._registry.generations],
                entrances=self._registry.names,
                max_message_bytes=self._max_message_bytes,
            ),
        )

    @property
    def address(self):
        """Where it listens, with the port that it got."""
        host = self._settings.listen.rpartition(":")[0]
        return f"{host}:{self.port}"

    def reload(self):
        """Looks for changed bundles now."""
        self._reload.set()

    async def train_works(self, works):
        """Tells health whether what is trained can be committed."""
        await self._health.set(TRAIN, _SERVING if works else _NOT_SERVING)

    async def stop(self, grace_s):
        """Ends: what is in flight is answered, for at most so many seconds.

        Args:
            grace_s: Seconds.
        """
        # Whoever balances load has to know before calls are refused.
        await self._health.enter_graceful_shutdown()
        logger.info("stopping", extra=fields(grace_s=grace_s))
        self._servicer.stop()
        ending = asyncio.create_task(self._server.stop(grace_s))
        idle = asyncio.create_task(self._servicer.idle())
        await asyncio.wait((ending, idle), return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        # What is left are calls that never end, such as watched health.
        await self._server.stop(0.2 if not ending.done() else None)
        await ending
        await self._closing.aclose()
        self._runner.close()
        if self._forwarder is not None:
            await asyncio.to_thread(self._forwarder.close)
        logger.info("stopped")

    async def _start_server(self):
        settings = self._settings
        self._server = grpc.aio.server(
            interceptors=[Guard(self._security, self.metrics)],
            options=server_options(self._max_message_bytes, _MAX_STREAMS),
            maximum_concurrent_rpcs=settings.max_calls,
        )
        self._servicer = SplitServicer(
            self._registry,
            Answering(self._runner, self._forwarder, self.metrics),
            self.metrics,
            max_deadline_s=settings.max_deadline_s,
            raw_input=settings.allow_raw_input,
            trainer=self._trainer,
        )
        split_pb2_grpc.add_SplitServicer_to_server(self._servicer, self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        await self._health.set(SERVICE, _SERVING)
        await self.train_works(self._trainer is not None)
        reflection.enable_server_reflection(
            (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME),
            self._server,
        )
        try:
            self.port = self._bind(settings.listen)
        except RuntimeError as error:
            raise OSError(
                "Expected an address that is free. Received: "
                f"{settings.listen!r}, which cannot be listened on. End "
                "what uses it, or choose another port."
            ) from error
        await self._server.start()

    def _bind(self, address):
        if self._credentials is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, self._credentials)

    def _start_metrics(self):
        settings = self._settings
        if settings.metrics_port is None:
            return
        self.metrics_port, close = self.metrics.serve(
            settings.metrics_host, settings.metrics_port
        )
        self._closing.push_async_callback(asyncio.to_thread, close)

    async def _load(self, source):
        """Loads a bundle and runs it once, beside what is served."""
        settings = self._settings
        bundle = await asyncio.to_thread(
            loading.load, source, settings.num_threads
        )
        generation = generations.build(
            source,
            bundle,
            max_message_bytes=self._max_message_bytes,
            max_batch=settings.max_batch,
            queue=self._queue,
            raw_input=settings.allow_raw_input,
        )
        await asyncio.to_thread(loading.warm_up, generation)
        await self._greet(generation)
        return generation

    async def _greet(self, generation):
        if generation.bundle.is_last:
            return
        reason = "--forward names none"
        if self._forwarder is not None:
            try:
                await asyncio.to_thread(self._forwarder.greet, generation)
                return
            except SplitError as error:
                reason = str(error)
        logger.warning(
            "no further worker: what does not leave here is answered by the "
            "last exit",
            extra=fields(generation=generation.name, reason=reason),
        )

    def _queue(self):
        settings = self._settings
        return Queue(
            settings.max_queue,
            settings.max_batch,
            settings.max_delay_ms / 1000,
        )

    async def _keep_house(self):
        """Loads what has changed, drops what is not used any more."""
        every_s = self._settings.reload_every_s
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    self._reload.wait(), every_s or _HOUSEKEEPING_S
                )
            asked, _ = self._reload.is_set(), self._reload.clear()
            if asked or every_s:
                changed = await asyncio.to_thread(self._watch.changed, asked)
                for source in changed:
                    await self._replace(source)
            await self._drop(self._registry.expire())

    async def _replace(self, source):
        try:
            generation = await self._load(source)
        # Whatever is wrong with it, the old one goes on.
        except Exception as error:
            self.metrics.reloads.labels("failed").inc()
            logger.error(
                "not reloaded",
                extra=fields(source=str(source), reason=str(error)),
            )
            return
        await self._drop(self._registry.add(generation))
        self.metrics.reloads.labels("loaded").inc()
        logger.info(
            "reloaded",
            extra=fields(
                source=str(source),
                generation=generation.name,
                entrances=self._registry.names,
            ),
        )

    async def _drop(self, gone):
        for generation in gone:
            logger.info("dropped", extra=fields(generation=generation.name))
            if self._forwarder is not None:
                await asyncio.to_thread(self._forwarder.forget, generation)


def _message_bytes(generation):
    """Bytes of the largest message, features or answers, of a generation."""
    sizes = [_LEAST_MESSAGE_BYTES]
    for entrance in generation.entrances.values():
        sizes.append(entrance.limits.max_message_bytes)
        answers = [
            spec
            for entry in entrance.bundle.manifest.stages
            for spec in entry.outputs
            if spec.name == "prediction"
        ]
        rows = entrance.limits.max_rows
        sizes.append(Limits.for_specs(answers, rows).max_message_bytes)
    return max(sizes)


async def serve(settings, forwarder=None):
    """Runs a worker until it is told to stop, by SIGTERM or SIGINT.

    Args:
        settings: `Settings`.
        forwarder: A `Forwarder`, or `None`.

    Raises:
        ValueError: If settings or bundles are not what they should be.
        OSError: If a file or a port cannot be used.
    """
    worker = CloudWorker(settings, forwarder)
    stopped = signals(worker.reload)
    await worker.start()
    await stopped.wait()
    await worker.stop(settings.grace_s)


def signals(reload):
    """Listens to signals.

    Args:
        reload: What to call at a SIGHUP.

    Returns:
        An `asyncio.Event`, set at SIGTERM or SIGINT.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    return stopped
