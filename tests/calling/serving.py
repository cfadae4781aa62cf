"""A small worker to call: numpy stages behind a real gRPC server."""

import concurrent.futures
import threading
import time

import grpc
import numpy as np

from keras_earlyexit.bundle.answering import Bundle
from keras_earlyexit.bundle.manifest import Manifest, StageEntry
from keras_earlyexit.bundle.specs import TensorSpec
from protos import split_pb2, split_pb2_grpc
from protos.errors import status_message
from protos.identity import PROTOCOL, Identity, differences
from protos.limits import Limits
from protos.options import server_options
from protos.tensors import decode_all, encode

CLASSES, WIDTH = 3, 8


def make_bundles(seed=0, weights="0"):
    """A model with three exits, cut behind the first: edge, cloud, whole."""
    rng = np.random.default_rng(seed)
    layers = [rng.normal(size=(WIDTH, WIDTH)) for _ in range(3)]
    heads = [rng.normal(size=(WIDTH, CLASSES)) for _ in range(3)]

    def stage(index):
        def run(arrays):
            feature = np.tanh(arrays[0] @ layers[index]).astype("float32")
            logits = np.exp(feature @ heads[index])
            prediction = logits / logits.sum(-1, keepdims=True)
            outputs = {"prediction": prediction.astype("float32")}
            if index < 2:
                outputs["feature"] = feature
                outputs["score"] = outputs["prediction"].max(-1)
            return outputs

        return run

    feature = TensorSpec("feature", (None, WIDTH), "float32")
    prediction = TensorSpec("prediction", (None, CLASSES), "float32")
    score = TensorSpec("score", (None,), "float32")
    entries = [
        StageEntry(0, "0", (TensorSpec("x", (None, WIDTH), "float32"),), ()),
        StageEntry(1, "1", (feature,), ()),
        StageEntry(2, "2", (feature,), (prediction,)),
    ]
    for i in range(2):
        entries[i] = StageEntry(
            i, str(i), entries[i].inputs, (feature, prediction, score)
        )

    def bundle(first, last):
        manifest = Manifest(
            format="litert",
            model_name="small",
            weights_sha256=weights * 64,
            exit_names=("exit_0", "exit_1", "final"),
            relative_costs=(0.3, 0.6, 1.02),
            thresholds=(0.6, 0.6),
            policy={"name": "max_probability", "config": {}},
            head={"units": CLASSES},
            class_names=None,
            segment_index=int(first > 0),
            segment_count=1 if last - first == 2 else 2,
            input_structure="tensor",
            stages=tuple(entries[first : last + 1]),
            files=(),
        )
        stages = [stage(i) for i in range(first, last + 1)]
        return Bundle(manifest, stages, "0" * 64)

    return bundle(0, 0), bundle(1, 2), bundle(0, 2)


class Servicer(split_pb2_grpc.SplitServicer):
    """Answers from a bundle, after doing what `before` says.

    `before` is called with each request and may wait or raise.
    """

    def __init__(self, bundle, max_rows=64):
        self.bundle = bundle
        self.identity = Identity.of(
            bundle.manifest, bundle.manifest.stages[0].index
        )
        self.limits = Limits.for_specs(self.identity.feature, max_rows)
        self.before = lambda request: None
        self.protocol = PROTOCOL
        self.requests = []
        self.hellos = []
        self.metadata = []

    def Hello(self, request, context):
        self.hellos.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        found = differences(Identity.of_hello(request), self.identity)
        return split_pb2.HelloReply(
            accepted=not found,
            differences=[
                split_pb2.Difference(what=d.what, edge=d.edge, cloud=d.cloud)
                for d in found
            ],
            protocol_major=self.protocol[0],
            protocol_minor=self.protocol[1],
            generation=self.identity.generation,
            max_rows=self.limits.max_rows,
            clock=time.time(),
        )

    def InferStream(self, requests, context):
        for request in requests:
            self.requests.append(request)
            reply = split_pb2.InferReply(request_id=request.request_id)
            try:
                self.before(request)
                self._answer(request, reply)
            except Exception as error:
                reply.status.CopyFrom(status_message(error))
            yield reply

    def _answer(self, request, reply):
        arrays = decode_all(request.tensors, self.identity.feature, self.limits)
        names = [feature.name for feature in self.identity.feature]
        result = self.bundle.predict_exits(
            dict(zip(names, arrays, strict=True))
        )
        reply.predictions.CopyFrom(encode(result.predictions))
        reply.exit_index.CopyFrom(encode(result.exit_index.astype("int32")))
        reply.score.CopyFrom(encode(result.score, finite=False))


class Serving:
    """A server with a `Servicer`, which can be stopped and started again."""

    def __init__(self, servicer, port=0):
        self.servicer = servicer
        self.port = port
        self._server = None
        self.start()

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def start(self):
        self._server = grpc.server(
            concurrent.futures.ThreadPoolExecutor(16),
            options=server_options(1 << 22, 100),
        )
        split_pb2_grpc.add_SplitServicer_to_server(self.servicer, self._server)
        self.port = self._server.add_insecure_port(self.address)
        self._server.start()

    def stop(self):
        if self._server is not None:
            self._server.stop(0).wait(5)
            self._server = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Gate:
    """Makes requests wait until it is opened."""

    def __init__(self):
        self._opened = threading.Event()
        self.entered = threading.Semaphore(0)

    def __call__(self, request):
        self.entered.release()
        self._opened.wait(20)

    def open(self):
        self._opened.set()
