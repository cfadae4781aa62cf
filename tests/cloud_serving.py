"""Cloud workers in the background, clients to them, stages that can wait."""

import asyncio
import contextlib
import threading
import types

import grpc
import numpy as np

from cloud_worker.answering import Answering
from cloud_worker.batching import Queue
from cloud_worker.config import Settings
from cloud_worker.generations import Registry, build
from cloud_worker.interceptors import Guard
from cloud_worker.metrics import Metrics
from cloud_worker.running import Runner
from cloud_worker.server import CloudWorker
from cloud_worker.servicer import SplitServicer
from keras_earlyexit.bundle.answering import Bundle
from protos import split_pb2, split_pb2_grpc
from protos.identity import Feature, Identity
from protos.options import channel_options, server_options
from protos.security import ServerSecurity
from protos.tensors import decode, encode

ID = "0123456789abcdef" * 2
# Clients may send what servers should refuse.
_MAX_BYTES = 512 << 20


class Loop:
    """An event loop in a thread."""

    def __init__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, coroutine, within_s=60):
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(within_s)

    def close(self):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Client:
    """A channel to a worker, and a stub."""

    def __init__(self, address, credentials=None, options=()):
        options = [*channel_options(_MAX_BYTES), *options]
        if credentials is None:
            self.channel = grpc.insecure_channel(address, options)
        else:
            self.channel = grpc.secure_channel(address, credentials, options)
        self.stub = split_pb2_grpc.SplitStub(self.channel)

    def hello(self, identity, edge_id="edge-1", **call):
        request = identity.hello(edge_id=edge_id)
        return self.stub.Hello(request, **{"timeout": 60, **call})

    def infer(self, request, timeout=60, **call):
        return self.stub.Infer(request, timeout=timeout, **call)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()


class Gated:
    """A bundle whose first stage waits until it is let, and notes its calls."""

    def __init__(self, bundle):
        self.opened, self.entered = threading.Event(), threading.Semaphore(0)
        self.opened.set()
        self.rows, self.threads, self.error = [], [], None
        self._first, *others = bundle.stages
        self.bundle = Bundle(bundle.manifest, [self, *others], "0" * 64)

    def __call__(self, arrays):
        self.rows.append(len(arrays[0]))
        self.threads.append(threading.get_ident())
        self.entered.release()
        self.opened.wait(30)
        if self.error is not None:
            raise self.error
        return self._first(arrays)


@contextlib.contextmanager
def serving(loop, *bundles, forwarder=None, **settings):
    """A whole worker, for paths of bundles."""
    defaults = {"listen": "127.0.0.1:0", "insecure": True}
    settings = Settings(bundle=bundles, **{**defaults, **settings})

    async def start():
        worker = CloudWorker(settings, forwarder)
        await worker.start()
        return worker

    worker = loop.run(start())
    try:
        yield worker
    finally:
        loop.run(worker.stop(1.0))


@contextlib.contextmanager
def assembled(loop, bundle, *, max_rows=1024, max_batch=64, security=None):
    """The parts of a worker, for a bundle that stands in no folder."""
    security = security or ServerSecurity(insecure=True)

    async def start():
        metrics, registry = Metrics(), Registry()
        runner = Runner(1, metrics.ran)
        generation = build(
            "here",
            bundle,
            max_message_bytes=None,
            max_batch=max_batch,
            queue=lambda: Queue(max_rows, max_batch),
            raw_input=False,
        )
        registry.add(generation)
        server = grpc.aio.server(
            interceptors=[Guard(security, metrics)],
            options=server_options(1 << 20, 1024),
        )
        servicer = SplitServicer(
            registry, Answering(runner, None, metrics), metrics
        )
        split_pb2_grpc.add_SplitServicer_to_server(servicer, server)
        credentials = security.credentials("127.0.0.1:0")
        if credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        return server, types.SimpleNamespace(
            address=f"127.0.0.1:{port}",
            registry=registry,
            metrics=metrics,
            runner=runner,
        )

    server, parts = loop.run(start())
    try:
        yield parts
    finally:
        loop.run(server.stop(0))
        parts.runner.close()


def identity_of(bundle, stage=1):
    """What an edge has to have to enter a bundle at a stage."""
    return Identity.of(bundle.manifest, stage)


def request_of(identity, *arrays, codec="float32", timeout_ms=10_000, id=ID):
    """A request for a generation."""
    return split_pb2.InferRequest(
        request_id=id,
        generation=identity.generation,
        timeout_ms=timeout_ms,
        tensors=[encode(array, codec) for array in arrays],
    )


def answers_of(reply, classes=4):
    """Predictions, exit index and score of a reply."""
    specs = (
        Feature("predictions", (None, classes), "float32"),
        Feature("exit_index", (None,), "int32"),
        Feature("score", (None,), "float32"),
    )
    messages = (reply.predictions, reply.exit_index, reply.score)
    return [
        decode(message, spec, 10_000, finite=spec.name != "score")
        for message, spec in zip(messages, specs, strict=True)
    ]


def features(rows, width=8, seed=3):
    """Features as `calling.serving`'s bundles take them."""
    generator = np.random.default_rng(seed)
    return np.tanh(generator.normal(size=(rows, width))).astype("float32")


def value(metrics, name, **labels):
    """The value of a metric now; 0 if it was never set."""
    found = metrics.registry.get_sample_value(f"cloud_worker_{name}", labels)
    return found or 0
