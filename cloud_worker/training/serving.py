"""A worker that trains, from its start to its end."""

import asyncio
import contextlib
import signal

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cloud_worker.interceptors import Guard
from cloud_worker.logs import fields, logger, start_logger
from cloud_worker.metrics import Metrics
from cloud_worker.server import SERVICE, TRAIN
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
    segment, folder, listen, security, output, grace_s=10.0, **options
):
    """Trains a segment until told to stop, by SIGTERM or SIGINT.

    Args:
        segment: A compiled `SegmentModel` that is not the first one.
        folder: Where the ledger is.
        listen: `"host:port"`; port 0 lets the system choose.
        security: A `ServerSecurity`.
        output: The `.keras` file to write at the end.
        grace_s: Seconds to end what is in flight.
        **options: As for `Trainer`.

    Raises:
        ValueError: If the ledger or the settings are wrong.
        OSError: If a file or the port cannot be used.
    """
    credentials = security.credentials(listen)
    status = health.aio.HealthServicer()
    trainer = Trainer.for_segment(
        segment,
        folder,
        on_health=lambda works: status.set(TRAIN, _STATES[works]),
        **options,
    )
    metrics = Metrics()
    server = grpc.aio.server(
        interceptors=[Guard(security, metrics)],
        options=server_options(trainer.max_message_bytes, _MAX_STREAMS),
    )
    servicer = SplitServicer(None, None, metrics, trainer=trainer)
    split_pb2_grpc.add_SplitServicer_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    try:
        await status.set(SERVICE, _STATES[True])
        await status.set(TRAIN, _STATES[True])
        port = _bind(server, listen, credentials)
        await server.start()
        address = f"{listen.rpartition(':')[0]}:{port}"
        start_logger.info(
            f"listening on {address}",
            extra=fields(
                address=address,
                generation=trainer.identity.generation,
                steps=trainer.steps,
            ),
        )
        await _told_to_stop()
        await status.enter_graceful_shutdown()
        logger.info("stopping", extra=fields(grace_s=grace_s))
        trainer.stop()
        await server.stop(grace_s)
    finally:
        await trainer.close(grace_s)
    save_model(segment, output)
    logger.info("stopped", extra=fields(file=str(output), steps=trainer.steps))


async def _told_to_stop():
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()


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
