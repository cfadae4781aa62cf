"""Replicas on Ray Serve: killed, added and let go while edges ask.

One cluster for all tests, since each takes its time to start.
"""

import os
import signal
import time

import numpy as np
import psutil
import pytest
from faults.clients import Load, wait_for_cloud
from faults.history import INFO, judge
from faults.on_ray import DEADLINE_S, MARKS, WITHIN_S
from faults.workers import CloudProcess
from waiting import poll

from cloud_worker.engines.loopback import is_open

pytestmark = MARKS


@pytest.fixture(scope="module")
def cloud(parts, tmp_path_factory):
    """A worker on Ray with one replica, or two where many requests wait."""
    folder = tmp_path_factory.mktemp("ray")
    process = CloudProcess(
        parts[0] / "segment_1",
        folder / "cloud.log",
        *("--engine", "ray", "--max-replicas", "2", "--replica-target", "0.3"),
        *("--replica-idle-s", "2", "--max-deadline-s", "60"),
        start_s=600,
    )
    process.start()
    yield process
    left = [psutil.Process(pid) for pid in replicas(process.pid)]
    assert process.stop() == 0
    _, alive = psutil.wait_procs(left, timeout=60)
    assert not alive, "replicas outlive their worker"


@pytest.fixture
def worker(cloud, edge, reference):
    found = edge(cloud.address, deadline=DEADLINE_S)
    wait_for_cloud(found, reference, within_s=WITHIN_S)
    return found


def replicas(pid):
    """Processes of a worker's replicas that answer."""
    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    found = []
    for process in below:
        try:
            title = " ".join(process.cmdline())
            if "ServeReplica" in title and "initialize" not in title:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_answers_are_those_of_the_whole_model(worker, reference):
    found = worker.predict(reference.x)
    assert set(found.answered_by) == {"edge", "cloud"}
    np.testing.assert_array_equal(found.exit_index, reference.result.exit_index)
    np.testing.assert_allclose(
        found.predictions, reference.result.predictions, atol=1e-5
    )


def test_the_proxy_of_ray_is_on_loopback_only(cloud, worker):
    below = psutil.Process(cloud.pid).children(recursive=True)
    proxy = [x for x in below if "ProxyActor" in " ".join(x.cmdline())]
    ports = [
        x.laddr.port
        for x in proxy[0].net_connections()
        if x.status == psutil.CONN_LISTEN and x.laddr.ip.endswith("127.0.0.1")
    ]
    # Those of HTTP and of gRPC.
    assert len(ports) >= 2
    assert not any(map(is_open, ports))


def test_no_answer_is_lost_when_replicas_come_go_and_are_killed(
    cloud, worker, reference, history
):
    with Load(worker, reference, history, pause_s=0.05):
        poll(lambda: len(replicas(cloud.pid)) == 2, within_s=WITHIN_S)
        # The new one takes part.
        time.sleep(2.0)
        for _ in range(2):
            history.add("nemesis", INFO, "gap", "killed")
            victim = replicas(cloud.pid)[0]
            os.kill(victim, signal.SIGKILL)
            poll(
                lambda victim=victim: (
                    victim not in (now := replicas(cloud.pid)) and len(now) == 2
                ),
                within_s=WITHIN_S,
            )
            time.sleep(2.0)
            history.add("nemesis", INFO, "back", "killed")
    found = judge(history.events, after_gap_s=DEADLINE_S)
    assert found.is_clean, found
    assert found.samples > 100


def test_no_answer_is_lost_when_a_replica_is_let_go(
    cloud, worker, reference, history
):
    # Few requests, so that one replica is enough.
    with Load(worker, reference, history, pause_s=2.0):
        poll(lambda: len(replicas(cloud.pid)) == 1, within_s=WITHIN_S)
        time.sleep(2.0)
    found = judge(history.events)
    assert found.is_clean, found
    assert not found.degraded
