"""The port of a worker: who may come in, health, reflection and metrics."""

import asyncio
import contextlib

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cloud_worker.interceptors import Guard
from cloud_worker.logs import fields, logger
from cloud_worker.metrics import Metrics
from protos import split_pb2
from protos.options import server_options
from protos.security import ServerSecurity

SERVICE = split_pb2.DESCRIPTOR.services_by_name["Split"].full_name
_STATES = {
    True: health_pb2.HealthCheckResponse.SERVING,
    False: health_pb2.HealthCheckResponse.NOT_SERVING,
}
# One connection carries all calls of an edge.
_MAX_STREAMS = 1024


class Endpoint:
    """Listens for edges. To be used from one event loop.

    Args:
        settings: `Settings`.

    Raises:
        ValueError: If the settings for security do not go together.
    """

    def __init__(self, settings):
        self._settings = settings
        self._security = ServerSecurity(
            cert=settings.tls_cert,
            key=settings.tls_key,
            client_ca=settings.client_ca,
            token_file=settings.token_file,
            insecure=settings.insecure,
        )
        self._credentials = self._security.credentials(settings.listen)
        self.metrics = Metrics()
        self.port = self.metrics_port = None
        self._closing = contextlib.AsyncExitStack()
        self._server = self._health = None

    @property
    def address(self):
        """Where it listens, with the port that it got."""
        host = self._settings.listen.rpartition(":")[0]
        return f"{host}:{self.port}"

    async def start(self, add_service, max_message_bytes, parts=()):
        """Starts to listen.

        Args:
            add_service: Called with the `grpc.aio.Server`; adds the service.
            max_message_bytes: Largest message, both ways.
            parts: Pairs of what else health tells of, and whether it works.

        Raises:
            OSError: If a port cannot be used.
        """
        self._server = grpc.aio.server(
            interceptors=[Guard(self._security, self.metrics)],
            options=server_options(max_message_bytes, _MAX_STREAMS),
            maximum_concurrent_rpcs=self._settings.max_calls,
        )
        add_service(self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for service, does in ((SERVICE, True), *parts):
            await self.works(service, does)
        reflection.enable_server_reflection(
            (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME),
            self._server,
        )
        self.port = self._bind(self._settings.listen)
        await self._server.start()
        self._start_metrics()

    async def works(self, service, does):
        """Tells health whether a service works."""
        await self._health.set(service, _STATES[does])

    async def stop(self, grace_s, in_flight):
        """Ends: what is in flight is answered, for at most so many seconds.

        Args:
            grace_s: Seconds.
            in_flight: The `InFlight` of the service.
        """
        # Whoever balances load has to know before calls are refused.
        await self._health.enter_graceful_shutdown()
        logger.info("stopping", extra=fields(grace_s=grace_s))
        in_flight.stop()
        ending = asyncio.create_task(self._server.stop(grace_s))
        idle = asyncio.create_task(in_flight.idle())
        await asyncio.wait((ending, idle), return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        # What is left are calls that never end, such as watched health.
        await self._server.stop(0.2 if not ending.done() else None)
        await ending
        await self._closing.aclose()

    def _bind(self, address):
        try:
            if self._credentials is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise OSError(
                "Expected an address that is free. Received: "
                f"{address!r}, which cannot be listened on. End what uses it, "
                "or choose another port."
            ) from error

    def _start_metrics(self):
        settings = self._settings
        if settings.metrics_port is None:
            return
        self.metrics_port, close = self.metrics.serve(
            settings.metrics_host, settings.metrics_port
        )
        self._closing.push_async_callback(asyncio.to_thread, close)
