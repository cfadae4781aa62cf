"""A worker whose stages run on Ray Serve, from its start to its end."""

import asyncio
import contextlib
import os
import secrets
import socket
import sys

from cloud_worker import generations, loading
from cloud_worker.batching import Queue
from cloud_worker.endpoint import SERVICE, Endpoint
from cloud_worker.engines import loopback
from cloud_worker.engines.front import APPLICATION, Front
from cloud_worker.logs import fields, logger, start_logger
from cloud_worker.server import signals
from cloud_worker.service import message_bytes
from keras_earlyexit.cli.shared import CommandError, ExitCode, install_command
from protos.security import ClientSecurity

_LOOK_EVERY_S = 1.0
# Ray gives its own processes 30 s to start, whatever else the machine does.
_STARTS = 4
_STARTED_S = 120.0
# The store for objects that tasks of Ray hand on; requests do not use it.
_STORE_BYTES = 100 << 20
# Ray's defaults send statistics, and write a token into the user's home.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    loopback.HOOK: "cloud_worker.engines.loopback.only",
}


async def serve(settings):
    """Runs a worker on Ray until it is told to stop, by SIGTERM or SIGINT.

    Args:
        settings: `Settings` with `engine="ray"`.

    Raises:
        ValueError: If settings or bundles are not what they should be.
        OSError: If a file or a port cannot be used.
        CommandError: If Ray is not installed.
    """
    # What runs the stages may import Ray.
    set_environment()
    endpoint = Endpoint(settings)
    largest = await asyncio.to_thread(_largest_message, settings)
    with contextlib.ExitStack() as stack:
        target = settings.ray_proxy
        if target is None:
            # Ray prints what it has to say, and lines of ours are JSON.
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            target = stack.enter_context(cluster(settings))
        else:
            # Only here, as it refuses what would leave this machine.
            ClientSecurity(insecure=True).credentials(target)
        await _stand_in_front(settings, endpoint, target, largest)


def set_environment():
    """Sets what Ray reads when it is imported."""
    os.environ.update(_ENVIRONMENT)
    # Of this cluster alone, and in no file.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@contextlib.contextmanager
def cluster(settings, replica=None):
    """A Ray Serve of this process's own, on loopback.

    Args:
        settings: `Settings`.
        replica: The class of replicas; `None` for `ray_app.Replica`.

    Yields:
        `"host:port"` of its gRPC proxy, once the replicas answer.

    Raises:
        CommandError: If Ray is not installed.
    """
    set_environment()
    try:
        import ray
        from ray import serve as ray_serve

        from cloud_worker.engines import ray_app
    except ImportError as error:
        raise CommandError(
            f"Expected Ray Serve for --engine ray. Received: {error}. Install "
            f"it with: {install_command('serve')}",
            ExitCode.MISSING,
        ) from error
    app = ray_app.application(settings, replica or ray_app.Replica)
    _start_ray(ray, settings)
    try:
        http, port = _free_port(), _free_port()
        ray_serve.start(
            proxy_location="HeadOnly",
            http_options={"host": loopback.HOST, "port": http},
            grpc_options={
                "port": port,
                "grpc_servicer_functions": [ray_app.SERVICER],
                "enable_reflection": False,
                "request_timeout_s": settings.max_deadline_s,
            },
        )
        if loopback.is_open(port):
            raise OSError(
                f"Expected Ray's gRPC proxy on {loopback.HOST} only. Received: "
                f"port {port}, which other machines can reach. Use a version "
                "of Ray that this was tested with, 2.60."
            )
        # Without a route its proxy would not know it.
        ray_serve.run(
            app,
            name=APPLICATION,
            route_prefix=f"/{APPLICATION}",
        )
        yield f"{loopback.HOST}:{port}"
    finally:
        ray_serve.shutdown()
        ray.shutdown()


def _start_ray(ray, settings):
    replicas = settings.replicas or settings.max_replicas or 1
    for attempt in range(1, _STARTS + 1):
        try:
            ray.init(
                address="local",
                # Ray counts one for each replica, whatever it needs.
                num_cpus=max(replicas, os.cpu_count()),
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                object_store_memory=_STORE_BYTES,
                _node_ip_address=loopback.HOST,
            )
            return
        # Ray has no narrower one.
        except Exception as error:
            ray.shutdown()
            if attempt == _STARTS:
                raise
            logger.warning("ray not started", extra=fields(reason=str(error)))


async def _stand_in_front(settings, endpoint, target, largest):
    front = Front(
        target,
        endpoint.metrics,
        largest,
        settings.max_deadline_s,
    )
    await _until_it_works(front, target)
    # Replicas see for themselves that a bundle has changed.
    stopped = signals(lambda: None)
    await endpoint.start(front.add_to, largest)
    looking = asyncio.create_task(_look(front, endpoint))
    start_logger.info(
        f"listening on {endpoint.address}",
        extra=fields(
            address=endpoint.address,
            metrics_port=endpoint.metrics_port,
            engine=settings.engine,
            engine_address=target,
            max_message_bytes=largest,
        ),
    )
    await stopped.wait()
    looking.cancel()
    await endpoint.stop(settings.grace_s, front.in_flight)
    await front.close()
    logger.info("stopped")


async def _until_it_works(front, target):
    try:
        async with asyncio.timeout(_STARTED_S):
            while not await front.works():
                await asyncio.sleep(_LOOK_EVERY_S)
    except TimeoutError as error:
        raise OSError(
            f"Expected the gRPC proxy of Ray Serve at {target}. Received: no "
            f"healthy answer within {_STARTED_S:g} s. Start Serve with the "
            "application, and look at its log."
        ) from error


async def _look(front, endpoint):
    """Tells health whether the engine works."""
    while True:
        await endpoint.works(SERVICE, await front.works())
        await asyncio.sleep(_LOOK_EVERY_S)


def _largest_message(settings):
    """Loads everything once: what cannot be served is to fail here."""
    sizes = []
    for source in settings.bundle:
        generation = generations.build(
            source,
            loading.load(source, settings.num_threads),
            max_message_bytes=None,
            max_batch=settings.max_batch,
            queue=lambda: Queue(settings.max_queue, settings.max_batch),
            raw_input=settings.allow_raw_input,
        )
        sizes.append(message_bytes(generation))
    return max(sizes)


def _free_port():
    with socket.create_server((loopback.HOST, 0)) as found:
        return found.getsockname()[1]
