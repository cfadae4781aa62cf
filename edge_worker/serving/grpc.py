"""gRPC: the wire of the cloud worker, entered with the model's own input."""

import concurrent.futures
import time

import grpc
import numpy as np

from edge_worker.results import DEGRADED
from edge_worker.serving.http import check_loopback
from edge_worker.serving.requests import MAX_ROWS
from protos import split_pb2, split_pb2_grpc
from protos.calling.connection import library_version
from protos.errors import VersionMismatch, status_of
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


class Servicer(split_pb2_grpc.SplitServicer):
    """Answers `Hello` and `Infer` for stage 0.

    Args:
        worker: An `EdgeWorker`.
        log: A `RequestLog`.
    """

    def __init__(self, worker, log):
        self._worker, self._log = worker, log
        self.identity = Identity.of(worker.bundle.manifest, 0)
        self.limits = Limits.for_specs(self.identity.feature, MAX_ROWS)

    def Hello(self, request, context):
        return self._run(context, "hello", lambda: (self._meet(request), None))

    def Infer(self, request, context):
        return self._run(context, "grpc", lambda: self._answer(request))

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

    def _run(self, context, how, call):
        """Turns errors into a code and a fixed sentence, and logs."""
        started = time.monotonic()
        try:
            reply, result = call()
        except Exception as error:
            code, sentence = status_of(error)
            self._log.write("failed", how=how, reason=str(error))
            self._log.answered(how, code.name, started)
            context.abort(code, sentence)
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
        servicer = Servicer(worker, log)
        self._server = grpc.server(
            concurrent.futures.ThreadPoolExecutor(_THREADS),
            options=server_options(servicer.limits.max_message_bytes, _STREAMS),
            maximum_concurrent_rpcs=2 * _THREADS,
        )
        split_pb2_grpc.add_SplitServicer_to_server(servicer, self._server)
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
        self._server.stop(_GRACE_S).wait()
