"""Errors become codes and fixed sentences, and errors again."""

import inspect
from concurrent import futures

import grpc
import pytest

from protos import errors, split_pb2, split_pb2_grpc
from protos.errors import (
    CircuitOpen,
    CloudFailed,
    CloudUnavailable,
    DamagedData,
    DeadlinePassed,
    Fenced,
    NotAllowed,
    Overloaded,
    Refused,
    SplitError,
    TooLarge,
    VersionMismatch,
    WireError,
    from_rpc_error,
    from_status,
    status_message,
    status_of,
)

SECRET = "/home/someone/weights.keras"
CODES = {
    WireError: "INVALID_ARGUMENT",
    TooLarge: "RESOURCE_EXHAUSTED",
    VersionMismatch: "FAILED_PRECONDITION",
    NotAllowed: "UNAUTHENTICATED",
    Fenced: "ABORTED",
    DamagedData: "DATA_LOSS",
    CloudFailed: "INTERNAL",
    CloudUnavailable: "UNAVAILABLE",
    Overloaded: "RESOURCE_EXHAUSTED",
    DeadlinePassed: "DEADLINE_EXCEEDED",
}


@pytest.mark.parametrize("kind", CODES)
def test_every_kind_comes_back(kind):
    error = from_status(status_message(kind(SECRET)))
    assert type(error) is kind
    assert status_of(kind(SECRET))[0].name == CODES[kind]


def test_the_tree_at_the_top_is_the_tree():
    drawn = [line.split() for line in errors.__doc__.splitlines()]
    names = [words[0] for words in drawn if words and words[0][0].isupper()]
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, SplitError):
            assert name in names


@pytest.mark.parametrize(
    "error",
    [kind(SECRET) for kind in (*CODES, CircuitOpen, Refused, SplitError)]
    + [NotAllowed(SECRET, is_known=True), KeyError(SECRET), OSError(SECRET)],
)
def test_no_text_of_an_exception_leaves(error):
    code, sentence = status_of(error)
    assert code is not grpc.StatusCode.OK
    assert sentence.endswith(".") and SECRET not in sentence


def test_anything_else_is_internal():
    assert status_of(ZeroDivisionError())[0] is grpc.StatusCode.INTERNAL
    error = from_status(split_pb2.Status(code=99, sentence="?"))
    assert type(error) is CloudFailed


def test_permission_of_a_known_caller():
    code, _ = status_of(NotAllowed("other id", is_known=True))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    error = from_status(status_message(NotAllowed("x", is_known=True)))
    assert error.is_known


@pytest.mark.parametrize(
    ("seconds", "ms", "back"),
    [(None, 0, None), (0.25, 250, 0.25), (0, 1, 0.001), (1e9, 3600000, 3600)],
)
def test_when_to_come_back(seconds, ms, back):
    status = status_message(Overloaded("full", seconds))
    assert status.retry_after_ms == ms
    assert from_status(status).retry_after_s == back


def test_a_long_sentence_of_a_peer_is_cut_to_a_line():
    status = split_pb2.Status(code=13, sentence="a\nb" + "c" * 10_000)
    text = str(from_status(status))
    assert "\n" not in text and len(text) < 300


class Answering(split_pb2_grpc.SplitServicer):
    """Fails as the request says."""

    def Infer(self, request, context):
        if request.timeout_ms:
            metadata = ((errors.RETRY_AFTER, request.generation),)
            context.set_trailing_metadata(metadata)
        code = grpc.StatusCode[request.request_id]
        context.abort(code, "said so")


@pytest.fixture(scope="module")
def stub():
    server = grpc.server(futures.ThreadPoolExecutor(2))
    split_pb2_grpc.add_SplitServicer_to_server(Answering(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    options = [("grpc.max_send_message_length", 1000)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        yield split_pb2_grpc.SplitStub(channel)
    server.stop(0).wait()


def failure(stub, code, after=None, **fields):
    request = split_pb2.InferRequest(
        request_id=code,
        generation=after or "",
        timeout_ms=int(after is not None),
        **fields,
    )
    with pytest.raises(grpc.RpcError) as caught:
        stub.Infer(request, timeout=10)
    return from_rpc_error(caught.value)


def test_calls_that_fail(stub):
    kinds = {code: kind for kind, code in CODES.items()}
    kinds |= {"RESOURCE_EXHAUSTED": Overloaded, "UNKNOWN": CloudFailed}
    kinds |= {"PERMISSION_DENIED": NotAllowed, "UNIMPLEMENTED": Refused}
    for code, kind in kinds.items():
        error = failure(stub, code)
        assert type(error) is kind
        assert code in str(error) and "said so" in str(error)


@pytest.mark.parametrize(
    ("after", "seconds"),
    [("250", 0.25), ("x", None), ("-1", None), ("9" * 30, None), ("", None)],
)
def test_retry_after_of_a_call(stub, after, seconds):
    error = failure(stub, "RESOURCE_EXHAUSTED", after)
    assert type(error) is Overloaded
    assert error.retry_after_s == seconds


def test_what_is_too_large_for_grpc(stub):
    tensors = [split_pb2.Tensor(data=bytes(2000))]
    error = failure(stub, "INTERNAL", tensors=tensors)
    assert type(error) is TooLarge


def test_nobody_there():
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        error = failure(split_pb2_grpc.SplitStub(channel), "INTERNAL")
    assert type(error) is CloudUnavailable
