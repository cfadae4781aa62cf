"""A cloud worker that does nothing but train, in a thread of this process."""

import asyncio
import contextlib
import threading

import grpc

from cloud_worker.interceptors import Guard
from cloud_worker.metrics import Metrics
from cloud_worker.servicer import SplitServicer
from protos import split_pb2_grpc
from protos.options import server_options
from protos.security import ServerSecurity


async def start(trainer, address="127.0.0.1:0"):
    """Starts a server for a `Trainer`; returns it and its port."""
    security = ServerSecurity(insecure=True)
    security.credentials(address)
    metrics = Metrics()
    server = grpc.aio.server(
        interceptors=[Guard(security, metrics)],
        options=server_options(trainer.max_message_bytes, 1024),
    )
    servicer = SplitServicer(None, None, metrics, trainer=trainer)
    split_pb2_grpc.add_SplitServicer_to_server(servicer, server)
    port = server.add_insecure_port(address)
    await server.start()
    return server, port


@contextlib.contextmanager
def serving(make_trainer, address="127.0.0.1:0"):
    """Serves what `make_trainer` returns; yields target and trainer."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

    async def begin():
        trainer = make_trainer()
        return trainer, *await start(trainer, address)

    trainer, server, port = run(begin())
    try:
        yield f"127.0.0.1:{port}", trainer
    finally:
        run(server.stop(0.2))
        run(trainer.close())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
