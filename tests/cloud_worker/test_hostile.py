"""What anybody can send: the worker says a code, and goes on."""

import gzip
import resource

import grpc
import numpy as np
import pytest
from calling.serving import make_bundles
from cloud_serving import Gated, features, identity_of, request_of, value

from protos import split_pb2
from protos.errors import status_of
from protos.security import ServerSecurity

CODE = grpc.StatusCode
SPLIT = "/keras_earlyexit.split.v1.Split/"
SECRET = "/home/someone/secret.txt"


@pytest.fixture
def gated():
    return Gated(make_bundles()[1])


@pytest.fixture
def parts(assemble, gated):
    return assemble(gated.bundle)


@pytest.fixture
def peer(client, parts):
    return client(parts.address)


def code_of(call, *args, **options):
    """Code and sentence of a call that fails."""
    with pytest.raises(grpc.RpcError) as error:
        call(*args, **{"timeout": 60, **options})
    return error.value.code(), error.value.details()


def answers(peer, gated):
    request = request_of(identity_of(gated.bundle), features(2))
    return len(peer.infer(request).exit_index.shape) == 1


def test_an_exception_leaves_no_text(peer, gated, parts, caplog):
    gated.error = RuntimeError(f"cannot read {SECRET}")
    request = request_of(identity_of(gated.bundle), features(2))
    expected = status_of(gated.error)
    assert SECRET not in expected[1]
    assert code_of(peer.infer, request) == expected
    call = peer.stub.InferStream(iter([request]), timeout=60)
    status = next(call).status
    assert (status.code, status.sentence) == (13, expected[1])
    call.cancel()
    # Our own log says what it was.
    assert SECRET in caplog.text
    gated.error = None
    assert answers(peer, gated)
    assert value(parts.metrics, "requests_total", code="INTERNAL") == 2


def raw(peer, method, stream=False):
    make = peer.channel.stream_stream if stream else peer.channel.unary_unary
    return make(SPLIT + method)


@pytest.mark.parametrize("method", ["Hello", "Infer", "InferStream"])
def test_bytes_that_are_no_message(method, peer, gated):
    rng = np.random.default_rng(0)
    good = request_of(identity_of(gated.bundle), features(2))
    good = good.SerializeToString()
    wrong = [
        b"\xff",
        good[:-3],
        b"\x0a\x02\xff\xfe",  # a string that is no UTF-8
        b"\x22" * 5000,
        *(rng.bytes(int(n)) for n in rng.integers(1, 300, 200)),
    ]
    call = raw(peer, method, stream=method == "InferStream")
    for content in wrong:
        try:
            if method == "InferStream":
                found = list(call(iter([content]), timeout=60))
                found = [split_pb2.InferReply.FromString(x) for x in found]
                assert all(reply.status.code for reply in found)
            else:
                call(content, timeout=60)
                raise AssertionError(content)
        except grpc.RpcError as error:
            assert error.code() in (
                CODE.INVALID_ARGUMENT,
                CODE.FAILED_PRECONDITION,
                CODE.UNAUTHENTICATED,
            )
            assert error.details().startswith(("The request", "A valid"))
    assert answers(peer, gated)


def test_fields_that_are_not_known_are_left_alone(peer, gated):
    request = request_of(identity_of(gated.bundle), features(2))
    content = request.SerializeToString() + b"\xfa\x7f\x03abc"
    assert raw(peer, "Infer")(content, timeout=60)


def test_too_large(peer, gated):
    request = request_of(identity_of(gated.bundle), features(2))
    request.tensors[0].data = bytes(2 << 20)
    code, sentence = code_of(peer.infer, request)
    assert code is CODE.RESOURCE_EXHAUSTED and "larger than max" in sentence
    assert answers(peer, gated)


def test_a_bomb(peer, gated):
    limit = 1 << 20
    content = split_pb2.InferRequest(request_id="a" * (200 * limit))
    content = content.SerializeToString()
    assert len(gzip.compress(content[:limit], 1)) < limit / 100
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, _ = code_of(
        raw(peer, "Infer"), content, compression=grpc.Compression.Gzip
    )
    assert code is CODE.RESOURCE_EXHAUSTED
    assert answers(peer, gated)
    # The client's half of the bomb is in this process too.
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 2.5 * len(content) / 1024


def test_metadata(peer, gated):
    request = request_of(identity_of(gated.bundle), features(2))
    metadata = (("something", "a" * 65536),)
    code, _ = code_of(peer.infer, request, metadata=metadata)
    assert code is CODE.RESOURCE_EXHAUSTED
    assert answers(peer, gated)


def test_ids_are_looked_at(peer, gated):
    identity = identity_of(gated.bundle)
    for edge_id in ("", "a/b", "x" * 65, "\n"):
        code, _ = code_of(peer.hello, identity, edge_id=edge_id)
        assert code is CODE.UNAUTHENTICATED
    long = request_of(identity, features(1), id="y" * 10_000)
    assert peer.infer(long).request_id == "y" * 10_000


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        ((), CODE.UNAUTHENTICATED),
        ((("authorization", "Bearer wrong"),), CODE.UNAUTHENTICATED),
        ((("authorization", "right"),), CODE.UNAUTHENTICATED),
        ((("authorization", "Bearer right"),), None),
    ],
)
def test_tokens(metadata, code, assemble, gated, client):
    security = ServerSecurity(insecure=True, tokens=("other", "right"))
    peer = client(assemble(gated.bundle, security=security).address)
    request = request_of(identity_of(gated.bundle), features(1))
    if code is None:
        assert peer.infer(request, metadata=metadata).request_id
        stream = peer.stub.InferStream(
            iter([request]), timeout=60, metadata=metadata
        )
        assert next(stream).request_id
        return
    assert code_of(peer.infer, request, metadata=metadata)[0] is code
    call = peer.stub.InferStream(iter([request]), timeout=60, metadata=metadata)
    assert code_of(lambda **_: next(call))[0] is code
    assert gated.rows == []


def test_an_id_belongs_to_its_certificate(assemble, gated, client, pki):
    security = ServerSecurity(
        cert=pki / "cloud.pem", key=pki / "cloud.key", client_ca=pki / "ca.pem"
    )
    parts = assemble(gated.bundle, security=security)
    ca, cert, key = (
        (pki / name).read_bytes() for name in ("ca.pem", "edge.pem", "edge.key")
    )
    peer = client(parts.address, grpc.ssl_channel_credentials(ca, key, cert))
    identity = identity_of(gated.bundle)
    assert peer.hello(identity).accepted
    assert peer.hello(identity, edge_id="").accepted
    code, _ = code_of(peer.hello, identity, edge_id="edge-2")
    assert code is CODE.PERMISSION_DENIED
    stranger = client(parts.address, grpc.ssl_channel_credentials(ca))
    code, _ = code_of(stranger.hello, identity, timeout=2)
    assert code in (CODE.UNAVAILABLE, CODE.DEADLINE_EXCEEDED)
