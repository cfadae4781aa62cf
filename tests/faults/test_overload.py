"""Ten times more than the worker can do: it does what it can, and says no."""

import collections
import threading
import time

import grpc
import numpy as np
import psutil
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

from keras_earlyexit.bundle.answering import Bundle

# Slow enough for what saying no takes in the same process.
BATCH, BATCH_S = 4, 0.12
CAPACITY = BATCH / BATCH_S
DEADLINE_S = 1.0


@pytest.fixture(scope="module")
def slow():
    """A worker whose stage takes its time, whatever the batch."""
    _, cloud, _ = make_bundles()
    first, *others = cloud.stages

    def stage(arrays):
        time.sleep(BATCH_S)
        return first(arrays)

    bundle = Bundle(cloud.manifest, [stage, *others], "0" * 64)
    bundle.thresholds = -np.inf
    loop = Loop()
    with assembled(loop, bundle, max_rows=16, max_batch=BATCH) as parts:
        with Client(parts.address) as client:
            yield client, identity_of(bundle)
    loop.close()


def offer(client, request, per_second, seconds):
    """An open loop: calls come whatever became of those before.

    Returns:
        Seconds of each call by the code that it ended with.
    """
    found, lock = collections.defaultdict(list), threading.Lock()
    # Those on their way only: thousands of calls are as many megabytes.
    calls = set()
    begun = time.monotonic()
    for number in range(int(per_second * seconds)):
        due = begun + number / per_second
        time.sleep(max(0.0, due - time.monotonic()))
        started = time.monotonic()

        def done(call, started=started):
            with lock:
                found[call.code()].append(time.monotonic() - started)
                calls.discard(call)

        call = client.stub.Infer.future(request, timeout=DEADLINE_S)
        with lock:
            calls.add(call)
        call.add_done_callback(done)
    with lock:
        left = list(calls)
    for call in left:
        # Whatever it came to: it ends.
        call.exception(timeout=60)
    return found


@pytest.mark.faults
def test_ten_times_its_capacity(slow, seconds=30):
    client, identity = slow
    request = request_of(identity, features(1), timeout_ms=1000)
    memory = psutil.Process().memory_info
    offer(client, request, 0.5 * CAPACITY, 1)
    before = memory().rss
    found = offer(client, request, 10 * CAPACITY, seconds)
    answered = found.pop(grpc.StatusCode.OK)
    assert len(answered) >= 0.9 * CAPACITY * seconds
    assert np.quantile(answered, 0.99) <= DEADLINE_S
    assert set(found) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    refused = found[grpc.StatusCode.RESOURCE_EXHAUSTED]
    # At once, not after a wait: hundreds of calls a second keep this busy.
    assert np.median(refused) < 0.05
    assert memory().rss - before < 64e6
    # And then everything is as before.
    time.sleep(0.5)
    found = offer(client, request, 0.5 * CAPACITY, 1)
    assert set(found) == {grpc.StatusCode.OK}
