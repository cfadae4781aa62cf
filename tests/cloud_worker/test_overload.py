"""More than can be done: what is turned away, at once, and what never runs."""

import threading
import time

import grpc
import numpy as np
import pytest
from calling.serving import make_bundles
from cloud_serving import Gated, features, identity_of, request_of, value
from waiting import poll

from protos.errors import Overloaded, from_rpc_error

CODE = grpc.StatusCode


@pytest.fixture
def gated():
    gated = Gated(make_bundles()[1])
    yield gated
    gated.opened.set()


def request(gated, rows=1, **options):
    return request_of(identity_of(gated.bundle), features(rows), **options)


def occupy(peer, gated):
    """A call whose batch runs until the gate opens."""
    gated.opened.clear()
    future = peer.stub.Infer.future(request(gated), timeout=30)
    assert gated.entered.acquire(timeout=60)
    return future


def test_a_full_worker_says_so_at_once(assemble, gated, client):
    parts = assemble(gated.bundle, max_rows=64)
    peer = client(parts.address)
    running = occupy(peer, gated)
    waiting = peer.stub.Infer.future(request(gated, 64), timeout=30)
    poll(lambda: parts.runner.rows == 64)
    seconds = []
    for _ in range(50):
        started = time.perf_counter()
        with pytest.raises(grpc.RpcError) as error:
            peer.infer(request(gated))
        seconds.append(time.perf_counter() - started)
        found = from_rpc_error(error.value)
        assert isinstance(found, Overloaded) and found.retry_after_s > 0
    # The bar is 10 ms where nothing else runs.
    assert np.median(seconds) < 0.2
    stream = peer.stub.InferStream(iter([request(gated)]), timeout=60)
    status = next(stream).status
    assert status.code == CODE.RESOURCE_EXHAUSTED.value[0]
    assert status.retry_after_ms > 0
    gated.opened.set()
    assert running.result() and waiting.result()
    assert peer.infer(request(gated))
    assert gated.rows == [1, 64, 1]


def test_calls_that_are_dead_do_not_run(assemble, gated, client):
    parts = assemble(gated.bundle, max_rows=200)
    peer = client(parts.address)
    running = occupy(peer, gated)
    cancelled = [
        peer.stub.Infer.future(request(gated), timeout=30) for _ in range(50)
    ]
    told = [
        peer.stub.Infer.future(request(gated, timeout_ms=100), timeout=30)
        for _ in range(25)
    ]
    poll(lambda: parts.runner.rows == 75)
    # On a busy machine some of them do not even arrive in time.
    short = [
        peer.stub.Infer.future(request(gated), timeout=0.5) for _ in range(25)
    ]
    for future in cancelled:
        future.cancel()
    for future in short:
        assert future.code() is CODE.DEADLINE_EXCEEDED
    # What gRPC ended leaves the queue; what only its own time ended stays
    # until its turn comes.
    poll(lambda: parts.runner.rows == 25)
    gated.opened.set()
    for future in told:
        assert future.code() is CODE.DEADLINE_EXCEEDED
    assert running.result() and peer.infer(request(gated))
    assert gated.rows == [1, 1]
    counted = value(
        parts.metrics, "requests_total", code="DEADLINE_EXCEEDED"
    ) + value(parts.metrics, "requests_total", code="CANCELLED")
    assert 75 <= counted <= 100
    assert value(parts.metrics, "in_flight_requests") == 0


def test_a_stream_that_ends_takes_its_requests_along(assemble, gated, client):
    parts = assemble(gated.bundle)
    peer = client(parts.address)
    running = occupy(peer, gated)
    ended = threading.Event()

    def requests():
        for _ in range(20):
            yield request(gated)
        ended.wait(10)

    call = peer.stub.InferStream(requests(), timeout=30)
    poll(lambda: parts.runner.rows == 20)
    call.cancel()
    ended.set()
    poll(lambda: parts.runner.rows == 0)
    gated.opened.set()
    assert running.result() and gated.rows == [1]


def test_a_peer_that_reads_no_answers_is_not_read_either(
    assemble, gated, client
):
    parts = assemble(gated.bundle, max_rows=100_000)
    peer = client(parts.address)
    sent = []

    def requests():
        while len(sent) < 5000:
            sent.append(1)
            yield request(gated, 64)

    running = occupy(peer, gated)
    call = peer.stub.InferStream(requests(), timeout=30)
    poll(lambda: parts.runner.rows == 256 * 64)
    assert value(parts.metrics, "in_flight_requests") == 257
    gated.opened.set()
    assert running.result()
    call.cancel()
