"""Ten times more than the worker can do: it does what it can, and says no.

The calls come from a process of their own, this file run as a program: so what
they take, and keep, is not the worker's.
"""

import collections
import json
import logging
import os
import subprocess
import sys
import threading
import time

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
from protos import split_pb2

BATCH, BATCH_S = 4, 0.08
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
        yield parts, identity_of(bundle)
    loop.close()


def offer(address, request, per_second, seconds):
    """An open loop: calls come whatever became of those before.

    Returns:
        Seconds of each call by the name of the code that it ended with.
    """
    child = subprocess.run(
        [sys.executable, __file__, address, str(per_second), str(seconds)],
        input=request.SerializeToString(),
        stdout=subprocess.PIPE,
        check=True,
        timeout=seconds + 120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return json.loads(child.stdout)


def make_calls(client, request, per_second, seconds):
    """What `offer` returns."""
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
                found[call.code().name].append(time.monotonic() - started)
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
def test_ten_times_its_capacity(slow, caplog, seconds=30):
    worker, identity = slow
    address = worker.address
    # A line for each that is refused, which pytest would keep in memory.
    caplog.set_level(logging.ERROR, logger="cloud_worker")
    request = request_of(identity, features(1), timeout_ms=1000)
    memory = psutil.Process().memory_info
    offer(address, request, 0.5 * CAPACITY, 1)
    before = memory().rss
    found = offer(address, request, 10 * CAPACITY, seconds)
    answered = found.pop("OK")
    assert len(answered) >= 0.9 * CAPACITY * seconds
    assert np.quantile(answered, 0.99) <= DEADLINE_S
    assert set(found) == {"RESOURCE_EXHAUSTED"}
    refused = found["RESOURCE_EXHAUSTED"]
    # Nearly all at once by the worker's own clock, and most by that of a
    # caller, who shares its processors with 500 calls a second.
    said_no = worker.metrics.request_seconds.labels("RESOURCE_EXHAUSTED")
    seconds_of = {
        sample.labels["le"]: sample.value
        for metric in said_no.collect()
        for sample in metric.samples
        if sample.name.endswith("_bucket")
    }
    assert seconds_of["0.01"] >= 0.99 * seconds_of["+Inf"] > 0
    assert np.median(refused) < 0.05
    assert memory().rss - before < 64e6
    # And then everything is as before.
    time.sleep(0.5)
    found = offer(address, request, 0.5 * CAPACITY, 1)
    assert set(found) == {"OK"}


if __name__ == "__main__":
    with Client(sys.argv[1]) as client_:
        found_ = make_calls(
            client_,
            split_pb2.InferRequest.FromString(sys.stdin.buffer.read()),
            *map(float, sys.argv[2:]),
        )
        print(json.dumps(found_))
