"""`edge-worker serve` as a process: HTTP, gRPC, limits and its end."""

import threading

import numpy as np
import pytest
from edge_serving import EdgeProcess

from edge_worker import EdgeWorker
from edge_worker.serving.http import check_loopback
from keras_earlyexit.bundle import load_bundle
from protos import split_pb2, split_pb2_grpc
from protos.calling.connection import library_version
from protos.identity import PROTOCOL, Feature, Identity
from protos.options import open_channel
from protos.tensors import decode, encode


@pytest.fixture(scope="module")
def edge(exported, cloud, tmp_path_factory):
    log = tmp_path_factory.mktemp("edge") / "log"
    with EdgeProcess(exported.edge, cloud.address, log) as edge:
        yield edge


def test_predict(edge, rows, wanted):
    code, content = edge.ask("POST", "/predict", {"inputs": rows.tolist()})
    assert code == 200
    answers = content["answers"]
    assert [x["exit"] for x in answers] == wanted.exit_index.tolist()
    np.testing.assert_allclose(
        [x["prediction"] for x in answers], wanted.predictions, atol=1e-4
    )
    by_name = {"inputs": {"row": rows[:2].tolist()}}
    assert edge.ask("POST", "/predict", by_name)[1]["answers"] == answers[:2]


def test_health_and_stats(edge):
    assert edge.ask("GET", "/health") == (200, {"status": "ok", "cloud": True})
    code, stats = edge.ask("GET", "/stats")
    assert code == 200 and "answered_by" in stats
    assert edge.ask("GET", "/")[0] == 404


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        ("{", {}, 400),
        ("[" * 100_000, {}, 400),
        ({"inputs": []}, {}, 400),
        ({"inputs": [[1, 2, 3]]}, {}, 400),
        ({"inputs": [["a"] * 6]}, {}, 400),
        ({"inputs": [[float("inf")] * 6]}, {}, 400),
        ({"inputs": [[float("nan")] * 6]}, {}, 400),
        ({"inputs": [[0] * 6] * 1025}, {}, 400),
        ({"inputs": {"other": [[0] * 6]}}, {}, 400),
        ({"inputs": [[0] * 6]}, {"Content-Type": "text/plain"}, 415),
        ("", {"Content-Length": "99999999999"}, 413),
        ("", {"Content-Length": "-1"}, 411),
    ],
)
def test_bad_requests(edge, body, headers, code):
    found, content = edge.ask("POST", "/predict", body, **headers)
    assert found == code
    assert "error" in content
    assert edge.ask("GET", "/health")[0] == 200


def test_each_request_is_a_line(edge, rows):
    edge.ask("POST", "/predict", {"inputs": rows[:7].tolist()})
    line = [x for x in edge.lines() if x["message"] == "request"][-1]
    assert line["code"] == 200 and line["rows"] == 7 and line["how"] == "http"
    assert sum(line["answered_by"].values()) == 7 and line["ms"] > 0


def test_grpc(edge, exported, rows, wanted):
    manifest = load_bundle(exported.edge).manifest
    identity = Identity.of(manifest, 0)
    with open_channel(edge.grpc, None, 1 << 22) as channel:
        stub = split_pb2_grpc.SplitStub(channel)
        hello = stub.Hello(
            identity.hello(library_version=library_version()), timeout=60
        )
        assert hello.accepted
        assert (hello.protocol_major, hello.protocol_minor) == PROTOCOL
        reply = stub.Infer(
            split_pb2.InferRequest(
                request_id="a", generation=hello.generation,
                tensors=[encode(rows)],
            ),
            timeout=60,
        )  # fmt: skip
        spec = Feature("exit_index", (None,), "int32")
        np.testing.assert_array_equal(
            decode(reply.exit_index, spec, 200), wanted.exit_index
        )
        later = Identity.of(manifest)
        assert not stub.Hello(later.hello(), timeout=60).accepted
        for request, code in (
            ({"generation": "other"}, "FAILED_PRECONDITION"),
            ({"generation": hello.generation}, "INVALID_ARGUMENT"),
        ):
            with pytest.raises(Exception) as raised:
                stub.Infer(split_pb2.InferRequest(**request), timeout=60)
            assert raised.value.code().name == code


def test_a_stream_over_grpc(edge, exported, rows, wanted):
    identity = Identity.of(load_bundle(exported.edge).manifest, 0)
    requests = [
        split_pb2.InferRequest(
            request_id=str(i),
            # One of them is for another model.
            generation="other" if i == 7 else identity.generation,
            tensors=[encode(rows[i : i + 5])],
        )
        for i in range(100)
    ]
    with open_channel(edge.grpc, None, 1 << 22) as channel:
        stub = split_pb2_grpc.SplitStub(channel)
        replies = {
            reply.request_id: reply
            for reply in stub.InferStream(iter(requests), timeout=30)
        }
    assert len(replies) == 100
    spec = Feature("exit_index", (None,), "int32")
    for i in range(100):
        reply = replies[str(i)]
        if i == 7:
            assert reply.status.code == 9
            continue
        np.testing.assert_array_equal(
            decode(reply.exit_index, spec, 5), wanted.exit_index[i : i + 5]
        )


def test_as_a_tier_of_its_own(edge, exported, rows, wanted):
    """Another edge worker sends it its inputs."""
    with EdgeWorker(
        exported.edge,
        edge.grpc,
        insecure=True,
        offload="input",
        allow_raw_input=True,
        thresholds=float("inf"),
        deadline=20.0,
    ) as worker:
        found = worker.predict(rows)
    assert found.counts["cloud"] == len(rows)
    np.testing.assert_array_equal(found.exit_index, wanted.exit_index)


def test_only_this_machine():
    assert check_loopback("127.0.0.1:80") == ("127.0.0.1", 80)
    for address in ("0.0.0.0:80", "192.0.2.1:80", "example.org:80"):
        with pytest.raises(ValueError, match="loopback"):
            check_loopback(address)


def test_sigterm_ends_it_in_order(edge):
    with open_channel(edge.grpc, None, 1 << 22) as channel:
        # A stream that nobody ends does not hold it up.
        asked = threading.Event()
        stream = split_pb2_grpc.SplitStub(channel).InferStream(
            iter(lambda: asked.wait(60), None)
        )
        assert edge.stop() == 0
        stream.cancel()
        asked.set()
    assert [x["message"] for x in edge.lines()[-2:]] == ["stopping", "stopped"]
