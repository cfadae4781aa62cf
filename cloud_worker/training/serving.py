"""A worker that trains, from its start to its end."""

import contextlib

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cloud_worker.interceptors import Guard
from cloud_worker.logs import fields, logger, start_logger
from cloud_worker.metrics import Metrics
from cloud_worker.server import SERVICE, TRAIN, CloudWorker, signals
from cloud_worker.servicer import SplitServicer
from cloud_worker.training.trainer import Trainer
from keras_earlyexit.snapshots import save_model
from protos import split_pb2_grpc
from protos.options import server_options

_STATES = {
    True: health_pb2.HealthCheckResponse.SERVING,
    False: health_pb2.HealthCheckResponse.NOT_SERVING,
}
_MAX_STREAMS = 1024


async def serve(
    segment,
    folder,
    listen,
    security,
    output,
    grace_s=10.0,
    answering=None,
    **options,
):
    """Trains a segment until told to stop, by SIGTERM or SIGINT.

    Args:
        segment: A compiled `SegmentModel` that is not the first one.
        folder: Where the ledger is.
        listen: `"host:port"`; port 0 lets the system choose.
        security: A `ServerSecurity`.
        output: The `.keras` file to write at the end.
        grace_s: Seconds to end what is in flight.
        answering: `Settings` of what is answered on the same port; `None`
            for a worker that only trains.
        **options: As for `Trainer`.

    Raises:
        ValueError: If the ledger or the settings are wrong.
        OSError: If a file or the port cannot be used.
    """
    servers = []

    async def on_health(works):
        for server in servers:
            await server.train_works(works)

    trainer = Trainer.for_segment(
        segment, folder, on_health=on_health, **options
    )
    try:
        if answering is None:
            server = _TrainingServer(trainer, listen, security)
        else:
            server = CloudWorker(answering, trainer=trainer)
        stopped = signals(server.reload)
        await server.start()
        servers.append(server)
        await stopped.wait()
        trainer.stop()
        await server.stop(grace_s)
    finally:
        await trainer.close(grace_s)
    save_model(segment, output)
    logger.info("written", extra=fields(file=str(output), steps=trainer.steps))


class _TrainingServer:
    """A worker that only trains.

    Args:
        trainer: A `Trainer`.
        listen: `"host:port"`.
        security: A `ServerSecurity`.
    """

    def __init__(self, trainer, listen, security):
        self._trainer, self._listen = trainer, listen
        self._credentials = security.credentials(listen)
        metrics = Metrics()
        self._status = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            interceptors=[Guard(security, metrics)],
            options=server_options(trainer.max_message_bytes, _MAX_STREAMS),
        )
        servicer = SplitServicer(None, None, metrics, trainer=trainer)
        split_pb2_grpc.add_SplitServicer_to_server(servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._status, self._server)

    async def start(self):
        await self._status.set(SERVICE, _STATES[True])
        await self.train_works(True)
        port = _bind(self._server, self._listen, self._credentials)
        await self._server.start()
        address = f"{self._listen.rpartition(':')[0]}:{port}"
        start_logger.info(
            f"listening on {address}",
            extra=fields(
                address=address,
                generation=self._trainer.identity.generation,
                steps=self._trainer.steps,
            ),
        )

    def reload(self):
        """There is nothing that could have changed."""

    async def train_works(self, works):
        await self._status.set(TRAIN, _STATES[works])

    async def stop(self, grace_s):
        await self._status.enter_graceful_shutdown()
        logger.info("stopping", extra=fields(grace_s=grace_s))
        await self._server.stop(grace_s)


def _bind(server, listen, credentials):
    with contextlib.suppress(RuntimeError):
        if credentials is None:
            return server.add_insecure_port(listen)
        return server.add_secure_port(listen, credentials)
    raise OSError(
        "Expected an address that is free. Received: "
        f"{listen!r}, which cannot be listened on. End what uses it, or choose "
        "another port."
    )
