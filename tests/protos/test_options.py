"""What the options of channels and servers are for, seen from outside."""

import os
import signal
import subprocess
import sys
import time
from concurrent import futures

import grpc
import pytest

from protos import split_pb2, split_pb2_grpc
from protos.options import channel_options, open_channel, server_options

BYTES = 10_000
SERVER = """
import sys
from concurrent import futures
import grpc
from protos import split_pb2, split_pb2_grpc
from protos.options import server_options

class Waiting(split_pb2_grpc.SplitServicer):
    def InferStream(self, requests, context):
        yield split_pb2.InferReply(request_id="ready")
        for request in requests:
            pass

server = grpc.server(
    futures.ThreadPoolExecutor(2), options=server_options(10_000, 10)
)
split_pb2_grpc.add_SplitServicer_to_server(Waiting(), server)
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
sys.stdin.read()
"""


class Echo(split_pb2_grpc.SplitServicer):
    """Sends back as many bytes as it is told."""

    def Infer(self, request, context):
        data = bytes(request.timeout_ms)
        return split_pb2.InferReply(predictions=split_pb2.Tensor(data=data))


@pytest.fixture
def target():
    server = grpc.server(
        futures.ThreadPoolExecutor(2), options=server_options(BYTES, 10)
    )
    split_pb2_grpc.add_SplitServicer_to_server(Echo(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


def infer(target, options, up=0, down=0):
    request = split_pb2.InferRequest(
        timeout_ms=down, tensors=[split_pb2.Tensor(data=bytes(up))]
    )
    with grpc.insecure_channel(target, options) as channel:
        return split_pb2_grpc.SplitStub(channel).Infer(request, timeout=10)


@pytest.mark.parametrize("sizes", [(2 * BYTES, 0), (0, 2 * BYTES)])
def test_messages_have_a_limit_on_both_sides(target, sizes):
    for options in (channel_options(BYTES), channel_options(10 * BYTES)):
        with pytest.raises(grpc.RpcError) as caught:
            infer(target, options, *sizes)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert infer(target, channel_options(BYTES), BYTES // 2, BYTES // 2)


def test_a_port_is_not_shared(target):
    server = grpc.server(
        futures.ThreadPoolExecutor(1), options=server_options(BYTES, 10)
    )
    with pytest.raises(RuntimeError, match="bind"):
        server.add_insecure_port(target)


def test_a_proxy_of_the_environment_is_not_asked(target, monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with open_channel(target, None, BYTES) as channel:
        request = split_pb2.InferRequest()
        assert split_pb2_grpc.SplitStub(channel).Infer(request, timeout=10)


@pytest.mark.faults
def test_a_peer_that_stands_still_is_found_in_eight_seconds():
    child = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        target = f"127.0.0.1:{int(child.stdout.readline())}"
        with open_channel(target, None, BYTES) as channel:
            stub = split_pb2_grpc.SplitStub(channel)
            ends = futures.Future()
            replies = stub.InferStream(iter(ends.result, None), timeout=60)
            assert next(replies).request_id == "ready"
            # More pings than a server strikes for: they end no connection.
            time.sleep(20)
            os.kill(child.pid, signal.SIGSTOP)
            start = time.monotonic()
            with pytest.raises(grpc.RpcError) as caught:
                next(replies)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert time.monotonic() - start <= 8.5
            ends.set_result(None)
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()
