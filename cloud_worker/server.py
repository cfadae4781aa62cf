"""A worker as a whole: what it consists of, how it starts and how it ends."""

import asyncio
import signal

from cloud_worker.endpoint import SERVICE as SERVICE
from cloud_worker.endpoint import Endpoint
from cloud_worker.logs import fields, logger, start_logger
from cloud_worker.service import Service
from protos import split_pb2_grpc

#: What the health service calls the part that trains.
TRAIN = "train"


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
        self._endpoint = Endpoint(settings)
        self._trainer = trainer
        self.metrics = self._endpoint.metrics
        self._service = Service(settings, self.metrics, forwarder, trainer)

    async def start(self):
        """Loads everything and starts to answer.

        Raises:
            ValueError: If a bundle is not what it should be.
            OSError: If a port cannot be used.
        """
        service = self._service
        await service.start()
        largest = service.max_message_bytes
        if self._trainer is not None:
            largest = max(largest, self._trainer.max_message_bytes)

        def add(server):
            split_pb2_grpc.add_SplitServicer_to_server(service.servicer, server)

        trains = (TRAIN, self._trainer is not None)
        await self._endpoint.start(add, largest, [trains])
        start_logger.info(
            f"listening on {self.address}",
            extra=fields(
                address=self.address,
                metrics_port=self.metrics_port,
                generations=service.generations,
                entrances=service.entrances,
                max_message_bytes=largest,
            ),
        )

    @property
    def address(self):
        """Where it listens, with the port that it got."""
        return self._endpoint.address

    @property
    def port(self):
        """The port that it got."""
        return self._endpoint.port

    @property
    def metrics_port(self):
        """The port for Prometheus, or `None`."""
        return self._endpoint.metrics_port

    def reload(self):
        """Looks for changed bundles now."""
        self._service.reload()

    async def train_works(self, works):
        """Tells health whether what is trained can be committed."""
        await self._endpoint.works(TRAIN, works)

    async def stop(self, grace_s):
        """Ends: what is in flight is answered, for at most so many seconds.

        Args:
            grace_s: Seconds.
        """
        await self._endpoint.stop(grace_s, self._service.servicer.in_flight)
        await self._service.close()
        logger.info("stopped")


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
