"""The port in front of an engine, here another worker without TLS."""

import contextlib
import threading

import grpc
import numpy as np
import pytest
from cloud_serving import Client, answers_of, identity_of, request_of, value

import keras_earlyexit as ee
from cloud_worker.config import Settings
from cloud_worker.endpoint import Endpoint
from cloud_worker.engines.front import MAX_ATTEMPTS, Front
from protos import split_pb2
from protos.errors import from_rpc_error

CODE = grpc.StatusCode
_MAX_BYTES = 4 << 20


@pytest.fixture(scope="module")
def whole(folders):
    return ee.load_bundle(folders / "whole")


@pytest.fixture(scope="module")
def edge(folders):
    return ee.load_bundle(folders / "cut" / "segment_0")


@pytest.fixture
def stand_in_front(loop, folders):
    """Starts a front; gives its address and metrics."""
    with contextlib.ExitStack() as stack:

        def start(target, **settings):
            defaults = {"listen": "127.0.0.1:0", "insecure": True}
            settings = Settings(
                bundle=[folders / "whole"], **{**defaults, **settings}
            )

            async def run():
                endpoint = Endpoint(settings)
                front = Front(target, endpoint.metrics, _MAX_BYTES, 60.0)
                await endpoint.start(front.add_to, _MAX_BYTES)
                return endpoint, front

            endpoint, front = loop.run(run())

            async def stop():
                await endpoint.stop(1.0, front.in_flight)
                await front.close()

            stack.callback(lambda: loop.run(stop()))
            return endpoint

        yield start


@pytest.fixture
def engine(serve, folders):
    return serve(folders / "whole")


@pytest.fixture
def front(stand_in_front, engine):
    return stand_in_front(engine.address)


@pytest.fixture
def peer(client, front):
    return client(front.address)


def test_an_edge_sees_no_difference(peer, edge, whole, x, front):
    identity = identity_of(edge, None)
    reply = peer.hello(identity)
    assert reply.accepted and reply.generation == identity.generation
    here, expected = edge.route(x), whole.predict_exits(x)
    request = request_of(identity, here.feature)
    alone = peer.infer(request)
    (streamed,) = peer.stub.InferStream(iter([request]), timeout=60)
    for found in (alone, streamed):
        assert found.request_id == request.request_id
        predictions, exit_index, _ = answers_of(found)
        np.testing.assert_array_equal(
            exit_index, expected.exit_index[here.staying]
        )
        np.testing.assert_allclose(
            predictions, expected.predictions[here.staying], atol=1e-5
        )
    assert value(front.metrics, "requests_total", code="OK") == 2


def test_a_stream_goes_on_after_an_error(peer, edge, x):
    identity = identity_of(edge, None)
    good = request_of(identity, edge.route(x).feature, id="a" * 32)
    bad = request_of(identity, np.zeros((2, 3), "float32"), id="b" * 32)
    replies = {
        reply.request_id: reply.status.code
        for reply in peer.stub.InferStream(iter([bad, good]), timeout=60)
    }
    assert replies == {"a" * 32: 0, "b" * 32: CODE.INVALID_ARGUMENT.value[0]}


def test_bytes_that_are_no_message(peer):
    method = "/keras_earlyexit.split.v1.Split/Infer"
    with pytest.raises(grpc.RpcError) as error:
        peer.channel.unary_unary(method)(b"\xff\xff", timeout=60)
    assert error.value.code() is CODE.INVALID_ARGUMENT


def test_what_the_engine_refuses_is_refused(peer, edge, x):
    identity = identity_of(edge, None)
    request = request_of(identity, edge.route(x).feature)
    request.generation = "another"
    with pytest.raises(grpc.RpcError) as error:
        peer.infer(request)
    assert error.value.code() is CODE.FAILED_PRECONDITION


def test_nothing_is_trained(peer):
    with pytest.raises(grpc.RpcError) as error:
        list(peer.stub.Train(iter([split_pb2.TrainRequest()]), timeout=60))
    assert error.value.code() is CODE.UNIMPLEMENTED


def test_an_edge_is_who_its_certificate_says(
    stand_in_front, engine, pki, edge, loop
):
    front = stand_in_front(
        engine.address,
        insecure=False,
        tls_cert=pki / "cloud.pem",
        tls_key=pki / "cloud.key",
        client_ca=pki / "ca.pem",
    )
    credentials = grpc.ssl_channel_credentials(
        (pki / "ca.pem").read_bytes(),
        (pki / "edge.key").read_bytes(),
        (pki / "edge.pem").read_bytes(),
    )
    identity = identity_of(edge, None)
    with Client(front.address, credentials) as peer:
        assert peer.hello(identity, edge_id="").accepted
        with pytest.raises(grpc.RpcError) as error:
            peer.hello(identity, edge_id="somebody-else")
        assert error.value.code() is CODE.PERMISSION_DENIED


class Lossy:
    """An engine that loses the first requests with their replicas."""

    def __init__(self, losses, answer):
        self.left, self.seen, self._answer = losses, [], answer
        self._lock = threading.Lock()

    def __call__(self, data, context):
        with self._lock:
            self.seen.append(split_pb2.InferRequest.FromString(data))
            self.left -= 1
            is_lost = self.left >= 0
        if is_lost:
            context.abort(CODE.INTERNAL, "The actor died unexpectedly.")
        return self._answer


@pytest.fixture
def lossy():
    """Starts a gRPC server with a `Lossy`; gives it and its address."""
    from concurrent import futures

    servers = []

    def start(losses):
        reply = split_pb2.InferReply(request_id="r").SerializeToString()
        engine = Lossy(losses, reply)
        handler = grpc.method_handlers_generic_handler(
            "keras_earlyexit.split.v1.Split",
            {"Infer": grpc.unary_unary_rpc_method_handler(engine)},
        )
        server = grpc.server(futures.ThreadPoolExecutor(4))
        server.add_generic_rpc_handlers((handler,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return engine, f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(0).wait()


def test_a_request_that_was_lost_is_asked_again(lossy, stand_in_front, client):
    engine, address = lossy(MAX_ATTEMPTS - 1)
    peer = client(stand_in_front(address).address)
    request = split_pb2.InferRequest(request_id="r", timeout_ms=30_000)
    assert peer.infer(request).request_id == "r"
    assert len(engine.seen) == MAX_ATTEMPTS
    # Each time with what is left of its deadline.
    left = [each.timeout_ms for each in engine.seen]
    assert left == sorted(left, reverse=True) and left[0] <= 30_000


def test_one_that_is_always_lost_is_told_in_the_end(
    lossy, stand_in_front, client
):
    engine, address = lossy(100)
    front = stand_in_front(address)
    peer = client(front.address)
    with pytest.raises(grpc.RpcError) as error:
        peer.infer(split_pb2.InferRequest(request_id="r"))
    # Nothing of what the engine says gets out.
    assert "actor" not in error.value.details()
    assert len(engine.seen) == MAX_ATTEMPTS
    assert str(from_rpc_error(error.value))
    assert value(front.metrics, "requests_total", code="INTERNAL") == 1
