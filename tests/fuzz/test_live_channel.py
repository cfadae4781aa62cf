"""Random and broken bytes through a live channel: the worker goes on."""

import random

import grpc
import numpy as np
import pytest
from calling.serving import make_bundles
from cloud_serving import (
    Client,
    Loop,
    assembled,
    features,
    identity_of,
    request_of,
)

METHOD = "/keras_earlyexit.split.v1.Split/{}"
FIXED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    # A hello with an id that is none.
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    # Bytes that happen to be a request, mostly empty ones of a hello.
    grpc.StatusCode.OK,
}


@pytest.fixture(scope="module")
def worker():
    _, cloud, _ = make_bundles()
    loop = Loop()
    with assembled(loop, cloud) as parts, Client(parts.address) as client:
        yield parts, client, identity_of(cloud)
    loop.close()


def mutated(rng, data):
    """Some bytes changed, cut off, repeated or put in between."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(len(data) + 1)
        kind = rng.randrange(4)
        if kind == 0 and data:
            data[place % len(data)] = rng.randrange(256)
        elif kind == 1:
            del data[place : place + rng.randint(1, 40)]
        elif kind == 2:
            data[place:place] = rng.randbytes(rng.randint(1, 20))
        else:
            data[place:place] = data[place : place + rng.randint(1, 60)]
    return bytes(data)


def inputs(rng, identity):
    """Endless broken messages, half of them close to right ones."""
    right = [
        request_of(identity, features(rows), codec=codec).SerializeToString()
        for rows in (1, 5)
        for codec in ("float32", "uint8", "uint8_channel", "float32+zstd")
    ]
    right.append(identity.hello(edge_id="edge-1").SerializeToString())
    while True:
        yield rng.randbytes(rng.randint(0, 300))
        yield mutated(rng, rng.choice(right))


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(1_000, id="short"),
        pytest.param(
            20_000,
            id="long",
            marks=[pytest.mark.fuzz, pytest.mark.timeout(900)],
        ),
    ],
)
def test_no_bytes_bring_the_worker_down(worker, count):
    parts, client, identity = worker
    rng = random.Random(5)
    calls = [
        client.channel.unary_unary(METHOD.format(name))
        for name in ("Infer", "Hello")
    ]
    seen = set()
    for _, data in zip(range(count), inputs(rng, identity), strict=False):
        call = rng.choice(calls)
        try:
            call(data, timeout=60)
            seen.add(grpc.StatusCode.OK)
        except grpc.RpcError as error:
            seen.add(error.code())
            assert "Traceback" not in error.details()
            assert ".py" not in error.details()
    assert seen <= FIXED
    assert grpc.StatusCode.INVALID_ARGUMENT in seen
    # Whatever came before, the next right one is answered.
    x = features(3)
    reply = client.infer(request_of(identity, x))
    assert np.frombuffer(reply.exit_index.data, "<i4").shape == (3,)
    assert parts.runner.rows == 0
