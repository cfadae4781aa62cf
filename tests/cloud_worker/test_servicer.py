"""The service, over real connections, with real bundles."""

import dataclasses
import queue

import grpc
import numpy as np
import pytest
from cloud_serving import ID, answers_of, identity_of, request_of, value

import keras_earlyexit as ee
from protos import split_pb2
from protos.errors import from_rpc_error, from_status
from protos.identity import PROTOCOL

CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def whole(folders):
    return ee.load_bundle(folders / "whole")


@pytest.fixture(scope="module")
def edge(folders):
    return ee.load_bundle(folders / "cut" / "segment_0")


@pytest.fixture
def worker(serve, folders):
    return serve(folders / "whole")


@pytest.fixture
def peer(client, worker):
    return client(worker.address)


class Stream:
    """A stream to which requests can be given one by one."""

    def __init__(self, stub):
        self._requests = queue.SimpleQueue()
        self.replies = stub.InferStream(
            iter(self._requests.get, None), timeout=20
        )

    def send(self, *requests):
        for request in requests:
            self._requests.put(request)

    def take(self, count):
        found = [next(self.replies) for _ in range(count)]
        return {reply.request_id: reply for reply in found}

    def end(self):
        self._requests.put(None)
        return list(self.replies)


def test_hello(peer, edge, whole):
    reply = peer.hello(identity_of(edge, None))
    assert reply.accepted and not reply.differences
    assert reply.generation == identity_of(whole).generation
    assert reply.max_rows == 64 and reply.max_message_bytes > 64 * 8 * 4
    assert (reply.protocol_major, reply.protocol_minor) == PROTOCOL


@pytest.mark.parametrize("method", ["Infer", "InferStream"])
def test_both_halves_answer_as_the_whole(method, peer, edge, whole, x):
    expected = whole.predict_exits(x)
    here = edge.route(x)
    request = request_of(identity_of(edge, None), here.feature)
    if method == "Infer":
        reply = peer.infer(request)
    else:
        stream = Stream(peer.stub)
        stream.send(request)
        (reply,) = stream.take(1).values()
        assert stream.end() == []
    assert reply.request_id == ID and reply.status.code == 0
    assert not reply.degraded and reply.compute_us > 0
    predictions, exit_index, score = answers_of(reply, 4)
    rows = here.staying
    np.testing.assert_allclose(
        predictions, expected.predictions[rows], atol=1e-5
    )
    np.testing.assert_array_equal(exit_index, expected.exit_index[rows])
    np.testing.assert_allclose(score, expected.score[rows], atol=1e-5)
    assert set(exit_index) == {1, 2}


def test_a_policy_that_looks_back(serve, client, folders, x):
    worker = serve(folders / "patient")
    edge = ee.load_bundle(folders / "patient_cut" / "segment_0")
    expected = ee.load_bundle(folders / "patient").predict_exits(x)
    here = edge.route(x)
    identity = identity_of(edge, None)
    peer = client(worker.address)
    assert peer.hello(identity).accepted
    reply = peer.infer(request_of(identity, here.feature, here.carry))
    exit_index = answers_of(reply, 4)[1]
    np.testing.assert_array_equal(exit_index, expected.exit_index[here.staying])
    with pytest.raises(grpc.RpcError) as error:
        peer.infer(request_of(identity, here.feature))
    assert error.value.code() is CODE.INVALID_ARGUMENT


def test_every_stage_can_be_entered(peer, whole, folders, x):
    edge, middle = (
        ee.load_bundle(folders / "cut" / f"segment_{i}") for i in range(2)
    )
    first = edge.route(x)
    second = middle.route(first.feature)
    identity = identity_of(middle, None)
    assert identity.first_stage == 2 and peer.hello(identity).accepted
    found = answers_of(peer.infer(request_of(identity, second.feature)), 4)[0]
    rows = first.staying[second.staying]
    expected = whole.predict_exits(x).predictions[rows]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("codec", ["float16", "bfloat16", "uint8_channel+zstd"])
def test_codecs(codec, peer, edge, whole, x):
    here = edge.route(x)
    identity = identity_of(edge, None)
    reply = peer.infer(request_of(identity, here.feature, codec=codec))
    expected = whole.predict_exits(x).predictions[here.staying]
    predictions = answers_of(reply, 4)[0]
    np.testing.assert_allclose(predictions, expected, atol=0.05)


def test_raw_input_only_where_it_is_allowed(serve, client, folders, whole, x):
    identity = identity_of(whole, 0)
    refusing = client(serve(folders / "whole").address)
    reply = refusing.hello(identity)
    assert not reply.accepted and not reply.generation
    assert [d.what for d in reply.differences] == ["raw input"]
    with pytest.raises(grpc.RpcError) as error:
        refusing.infer(request_of(identity, x))
    assert error.value.code() is CODE.FAILED_PRECONDITION
    taking = client(serve(folders / "whole", allow_raw_input=True).address)
    assert taking.hello(identity).accepted
    found = answers_of(taking.infer(request_of(identity, x)), 4)[1]
    np.testing.assert_array_equal(found, whole.predict_exits(x).exit_index)


@pytest.mark.parametrize(
    ("bundle", "stage", "what"),
    [
        ("other", 1, {"weights", "policy"}),
        ("moved", 1, {"policy"}),
        ("whole", 0, {"raw input"}),
        ("patient", 1, {"policy", "features"}),
    ],
)
def test_other_halves_are_refused_with_what_differs(
    bundle, stage, what, peer, folders
):
    identity = identity_of(ee.load_bundle(folders / bundle), stage)
    reply = peer.hello(identity)
    assert not reply.accepted and not reply.generation
    assert {d.what for d in reply.differences} == what
    assert all(d.edge and d.cloud for d in reply.differences)
    if stage:
        with pytest.raises(grpc.RpcError) as error:
            peer.infer(request_of(identity, np.zeros((1, 8), "float32")))
        assert error.value.code() is CODE.FAILED_PRECONDITION


def test_another_cut(serve, client, folders, edge):
    worker = serve(folders / "cut" / "segment_2")
    reply = client(worker.address).hello(identity_of(edge, None))
    (found,) = reply.differences
    assert (found.what, found.edge, found.cloud) == ("first stage", "1", "2")


def test_another_protocol(peer, edge):
    hello = identity_of(edge, None).hello(edge_id="edge-1")
    hello.protocol_minor += 7
    assert peer.stub.Hello(hello, timeout=60).accepted
    hello.protocol_major += 1
    reply = peer.stub.Hello(hello, timeout=60)
    assert not reply.accepted
    assert [d.what for d in reply.differences] == ["protocol"]


def test_several_models(serve, client, folders, x):
    worker = serve(folders / "whole", folders / "other")
    peer = client(worker.address)
    for name in ("whole", "other"):
        bundle = ee.load_bundle(folders / name)
        identity = identity_of(bundle)
        assert peer.hello(identity).generation == identity.generation
        here = np.tanh(x @ np.ones((6, 8), "float32"))
        found = answers_of(peer.infer(request_of(identity, here)), 4)[0]
        expected = bundle.from_stage(1).predict_exits(here).predictions
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_stream_goes_on_after_an_error(peer, edge, x, worker):
    identity = identity_of(edge, None)
    feature = edge.route(x).feature
    other = dataclasses.replace(identity, weights_sha256="f" * 64)
    stream = Stream(peer.stub)
    stream.send(
        request_of(identity, feature, id="good"),
        request_of(other, feature, id="unknown"),
        request_of(identity, feature[:, :3], id="narrow"),
        split_pb2.InferRequest(request_id="empty"),
        request_of(identity, feature[:2], id="late", timeout_ms=1),
        request_of(identity, feature, id="good too"),
    )
    replies = stream.take(6)
    assert stream.end() == []
    codes = {id: reply.status.code for id, reply in replies.items()}
    late = codes.pop("late")
    assert late in (CODE.OK.value[0], CODE.DEADLINE_EXCEEDED.value[0])
    assert codes == {
        "good": 0,
        "unknown": CODE.FAILED_PRECONDITION.value[0],
        "narrow": CODE.INVALID_ARGUMENT.value[0],
        "empty": CODE.FAILED_PRECONDITION.value[0],
        "good too": 0,
    }
    assert "Say hello again" in str(from_status(replies["unknown"].status))
    assert value(worker.metrics, "requests_total", code="OK") >= 2
    assert value(worker.metrics, "requests_total", code="INVALID_ARGUMENT") == 1


def test_many_requests_of_one_stream(peer, edge, whole, x):
    identity = identity_of(edge, None)
    here = edge.route(x)
    expected = whole.predict_exits(x).exit_index[here.staying]
    stream = Stream(peer.stub)
    count = len(here.staying)
    stream.send(
        *(
            request_of(identity, here.feature[i % count][None], id=str(i))
            for i in range(1000)
        )
    )
    replies = stream.take(1000)
    assert stream.end() == [] and len(replies) == 1000
    for id, reply in replies.items():
        assert answers_of(reply, 4)[1] == expected[int(id) % count]


def test_what_cannot_be_right(peer, edge, x):
    identity = identity_of(edge, None)
    feature = np.ascontiguousarray(edge.route(x).feature)
    wrong = [
        request_of(identity),
        request_of(identity, feature, feature),
        request_of(identity, feature[0]),
        request_of(identity, feature.astype("int32")),
        request_of(identity, np.full((1, 8), 3e38, "float32")),
    ]
    wrong[-1].tensors[0].data = np.full((1, 8), np.nan, "<f4").tobytes()
    for request in wrong:
        with pytest.raises(grpc.RpcError) as error:
            peer.infer(request)
        assert error.value.code() is CODE.INVALID_ARGUMENT
    many = request_of(identity, np.zeros((65, 8), "float32"))
    with pytest.raises(grpc.RpcError) as error:
        peer.infer(many)
    assert error.value.code() is CODE.RESOURCE_EXHAUSTED
    assert type(from_rpc_error(error.value)).__name__ == "TooLarge"
    assert len(peer.infer(request_of(identity, feature)).exit_index.data)


def test_nothing_is_trained(peer):
    with pytest.raises(grpc.RpcError) as error:
        list(peer.stub.Train(iter([split_pb2.TrainRequest()]), timeout=60))
    assert error.value.code() is CODE.UNIMPLEMENTED


def test_what_was_done_is_counted(worker, peer, edge, x):
    identity = identity_of(edge, None)
    here = edge.route(x)
    exit_index = answers_of(peer.infer(request_of(identity, here.feature)), 4)[
        1
    ]
    metrics = worker.metrics
    assert value(metrics, "rows_total") == len(exit_index)
    for index, name in ((1, "exit_1"), (2, "final")):
        found = value(metrics, "exits_total", exit=name)
        assert found == np.sum(exit_index == index) > 0
    method = "/keras_earlyexit.split.v1.Split/Infer"
    assert value(metrics, "calls_total", method=method, code="OK") == 1
    assert value(metrics, "bytes_total", direction="up") > here.feature.nbytes
    assert value(metrics, "bytes_total", direction="down") > 0
    assert value(metrics, "batch_rows_sum") == len(exit_index)
    assert value(metrics, "queue_seconds_count") == 1
    assert value(metrics, "request_seconds_count", code="OK") == 1
    assert value(metrics, "in_flight_requests") == 0
    assert value(metrics, "generations") == 1
