"""gRPC: the wire of the cloud worker, entered with the model's own input."""

import concurrent.futures
import threading
import time

import grpc
import numpy as np

from edge_worker.results import DEGRADED
from edge_worker.serving.http import check_loopback
from edge_worker.serving.requests import MAX_ROWS
from edge_worker.serving.streaming import Pipeline
from protos import split_pb2, split_pb2_grpc
from protos.calling.connection import library_version
from protos.errors import (
    Overloaded,
    VersionMismatch,
    status_message,
    status_of,
)
from protos.identity import (
    PROTOCOL,
    Identity,
    differences,
    protocol_differences,
)
from protos.limits import Limits
from protos.options import server_options
from protos.tensors import decode_all, encode

_THREADS = 16
_STREAMS = 64
_GRACE_S = 5.0
#: Streams that may be open, each of which keeps a thread, and requests of one
#: at the same time.
_MAX_OPEN = 16
_MAX_IN_FLIGHT = 32


class Servicer(split_pb2_grpc.SplitServicer):
    """Answers `Hello`, `Infer` and `InferStream` for stage 0.

    Args:
        worker: An `EdgeWorker`.
        log: A `RequestLog`.
    """

    def __init__(self, worker, log):
        self._worker, self._log = worker, log
        self.limits = Limits.for_specs(self.identity.feature, MAX_ROWS)
        self._pool = concurrent.futures.ThreadPoolExecutor(
            _THREADS, "edge-stream"
        )
        self._open = set()
        self._lock = threading.Lock()
        self._is_stopping = False

    @property
    def identity(self):
        """What answers now: another one once a new generation has come."""
        return Identity.of(self._worker.bundle.manifest, 0)

    def Hello(self, request, context):
        return self._or_abort(
            context, "hello", lambda: (self._meet(request), None)
        )

    def Infer(self, request, context):
        return self._or_abort(context, "grpc", lambda: self._answer(request))

    def InferStream(self, requests, context):
        pipeline = Pipeline(
            self._answer_always, requests, self._pool, _MAX_IN_FLIGHT
        )
        with self._lock:
            is_full = len(self._open) >= _MAX_OPEN or self._is_stopping
            if not is_full:
                self._open.add(pipeline)
        if is_full:
            context.abort(*status_of(Overloaded("No more streams.")))
        try:
            yield from pipeline
        finally:
            with self._lock:
                self._open.discard(pipeline)

    def stop(self):
        """Reads no more requests from the streams that are open."""
        with self._lock:
            self._is_stopping = True
            streams = list(self._open)
        for pipeline in streams:
            pipeline.stop()

    def close(self):
        """Lets the threads go, once nothing is answered any more."""
        self._pool.shutdown()

    def _meet(self, request):
        found = protocol_differences(
            (request.protocol_major, request.protocol_minor)
        ) or differences(Identity.of_hello(request), self.identity)
        return split_pb2.HelloReply(
            accepted=not found,
            differences=[
                split_pb2.Difference(what=x.what, edge=x.edge, cloud=x.cloud)
                for x in found
            ],
            protocol_major=PROTOCOL[0],
            protocol_minor=PROTOCOL[1],
            library_version=library_version(),
            generation=self.identity.generation,
            max_rows=self.limits.max_rows,
            max_message_bytes=self.limits.max_message_bytes,
            clock=time.time(),
        )

    def _answer(self, request):
        if request.generation != self.identity.generation:
            raise VersionMismatch(
                f"Expected {self.identity.generation}. Received: "
                f"{request.generation[:256]}. Say hello again."
            )
        features = self.identity.feature
        arrays = decode_all(request.tensors, features, self.limits)
        names = [feature.name for feature in features]
        result = self._worker.predict(dict(zip(names, arrays, strict=True)))
        reply = split_pb2.InferReply(
            request_id=request.request_id,
            predictions=encode(result.predictions),
            exit_index=encode(result.exit_index.astype("int32")),
            score=encode(result.score, finite=False),
            degraded=np.flatnonzero(result.answered_by == DEGRADED).tolist(),
        )
        return reply, result

    def _answer_always(self, request):
        """Answers a request of a stream, which goes on after an error."""
        try:
            return self._logged("grpc", lambda: self._answer(request))
        except Exception as error:
            return split_pb2.InferReply(
                request_id=request.request_id, status=status_message(error)
            )

    def _or_abort(self, context, how, call):
        """Turns errors into a code and a fixed sentence."""
        try:
            return self._logged(how, call)
        except Exception as error:
            context.abort(*status_of(error))

    def _logged(self, how, call):
        """Writes a line of what became of a request; raises what it does."""
        started = time.monotonic()
        try:
            reply, result = call()
        except Exception as error:
            self._log.write("failed", how=how, reason=str(error))
            self._log.answered(how, status_of(error)[0].name, started)
            raise
        self._log.answered(how, "OK", started, result)
        return reply


class GRPCServer:
    """Serves an edge worker over gRPC.

    Args:
        address: `"host:port"` to listen on, a loopback address.
        worker: An `EdgeWorker`.
        log: A `RequestLog`.
    """

    def __init__(self, address, worker, log):
        host = address.rpartition(":")[0]
        check_loopback(address)
        self._servicer = Servicer(worker, log)
        max_message_bytes = self._servicer.limits.max_message_bytes
        self._server = grpc.server(
            concurrent.futures.ThreadPoolExecutor(_THREADS + _MAX_OPEN),
            options=server_options(max_message_bytes, _STREAMS),
            maximum_concurrent_rpcs=2 * _THREADS + _MAX_OPEN,
        )
        split_pb2_grpc.add_SplitServicer_to_server(self._servicer, self._server)
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(
                f"Expected an address that is free. Received: {address!r}. "
                "End what uses it, or choose another port."
            ) from error
        self.address = f"{host}:{port}"

    def start(self):
        self._server.start()

    def stop(self):
        """Answers what is being answered, and ends."""
        self._servicer.stop()
        self._server.stop(_GRACE_S).wait()
        self._servicer.close()
