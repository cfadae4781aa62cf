"""`edge-worker serve`: answers programs on this machine."""

import contextlib
import queue
import signal
from typing import Annotated

import typer

from edge_worker.cli.shared import ExitCode

_LOOK_EVERY_S = 1.0


def serve(
    settings,
    listen: Annotated[
        str,
        typer.Option(
            help="Loopback host:port for HTTP; port 0 lets the system choose."
        ),
    ] = "127.0.0.1:8080",
    grpc: Annotated[
        str | None,
        typer.Option(help="Loopback host:port for gRPC (default: none)."),
    ] = None,
    reload_every_s: Annotated[
        float,
        typer.Option(
            min=0,
            max=86_400,
            help="How often to look whether the bundle has changed; 0 never "
            "does.",
        ),
    ] = 1.0,
):
    """Answer other programs on this machine over HTTP, until told to stop.

    POST /predict takes {"inputs": [...]}; GET /health and /stats say how it
    goes. Each request is a line of JSON.
    """
    # They import gRPC.
    from edge_worker.serving.grpc import GRPCServer
    from edge_worker.serving.http import HTTPServer, check_loopback
    from edge_worker.serving.requests import RequestLog

    for address in filter(None, (listen, grpc)):
        check_loopback(address)
    # Unlike an event's `set`, `put` may interrupt anything, also a `get`.
    asked = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.put(None))
    log = RequestLog()
    with _worker(settings, reload_every_s) as worker:
        servers = [HTTPServer(listen, worker, log)]
        if grpc is not None:
            servers.append(GRPCServer(grpc, worker, log))
        for server in servers:
            server.start()
        log.write(
            f"listening on {servers[0].address}",
            address=servers[0].address,
            grpc_address=servers[1].address if grpc else None,
            cloud=settings.config.target,
            is_connected=worker.is_connected,
        )
        _wait_for(asked)
        log.write("stopping")
        for server in servers:
            server.stop()
        log.write("stopped", stats=worker.stats)
    return ExitCode.OK


def _wait_for(asked):
    """Waits until something is in a queue, where a signal puts it.

    It looks up now and then: a signal that comes just before a wait begins
    does not end it.
    """
    while True:
        with contextlib.suppress(queue.Empty):
            return asked.get(timeout=_LOOK_EVERY_S)


def _worker(settings, reload_every_s):
    if not reload_every_s:
        return settings.start()
    from edge_worker.reloading import ReloadingWorker

    return ReloadingWorker(settings.start, settings.bundle, reload_every_s)
