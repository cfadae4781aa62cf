"""Inference over faults: real processes, killed, frozen and cut off.

A short form of each runs by default, the long one with the marker `faults`.
"""

import random
import time

import numpy as np
import psutil
import pytest
from faults.clients import Load, wait_for_cloud
from faults.history import INFO, INVOKE, OK, judge
from proxy import DOWN, Proxy

DEADLINE_S = 0.5
#: Python's threads and a busy machine of two cores, above the deadline.
SLACK_S = 0.25
SEED = 7


def short_and_long(short, long):
    return pytest.mark.parametrize(
        "size",
        [
            pytest.param(short, id="short"),
            pytest.param(
                long,
                id="long",
                marks=[pytest.mark.faults, pytest.mark.timeout(900)],
            ),
        ],
    )


def outage(history, what, seconds, begin, end):
    history.add("nemesis", INFO, "gap", what)
    begin()
    time.sleep(seconds)
    end()
    history.add("nemesis", INFO, "back", what)


@short_and_long((2, 2.5), (10, 18.0))
def test_killed_again_and_again(size, cloud, edge, reference, history):
    kills, seconds_between = size
    rng = random.Random(SEED)
    worker = edge(cloud.address, deadline=DEADLINE_S)
    with Load(worker, reference, history, pause_s=0.06):
        for _ in range(kills):
            time.sleep(seconds_between * rng.uniform(0.7, 1.3))
            outage(history, "killed", 0.0, cloud.kill, cloud.start)
        time.sleep(2.5)
    found = judge(history.events)
    assert found.is_clean, found
    assert found.slowest_s < DEADLINE_S + SLACK_S
    assert 0 < found.degraded
    if kills == 10:
        assert found.requests >= 10_000
        assert found.degraded <= 0.1 * found.samples


@short_and_long(3.0, 30.0)
def test_frozen(size, cloud, edge, reference, history):
    worker = edge(cloud.address, deadline=DEADLINE_S)
    with Load(worker, reference, history, pause_s=0.02):
        time.sleep(0.5)
        outage(history, "frozen", size, cloud.freeze, cloud.thaw)
        wait_for_cloud(worker, reference, within_s=2.0)
    found = judge(history.events)
    assert found.is_clean, found
    assert found.slowest_s < DEADLINE_S + SLACK_S
    assert found.degraded


@short_and_long(3.0, 10.0)
@pytest.mark.parametrize("direction", [None, DOWN])
def test_cut_off(size, direction, cloud, edge, reference, history):
    with Proxy(cloud.address) as proxy:
        worker = edge(proxy.address, deadline=DEADLINE_S)
        with Load(worker, reference, history, pause_s=0.02):
            time.sleep(0.5)
            outage(
                history,
                "cut off",
                size,
                lambda: proxy.set(direction, blackhole=True),
                proxy.heal,
            )
            wait_for_cloud(worker, reference, within_s=5.0)
        worker.close()
    found = judge(history.events, after_gap_s=5.0)
    assert found.is_clean, found
    # A request under way when the cut comes waits for its whole deadline.
    assert found.slowest_s < DEADLINE_S + SLACK_S


@short_and_long(4.0, 60.0)
def test_slow_and_jittery_link(size, cloud, edge, reference, history):
    memory = psutil.Process().memory_info
    rng = random.Random(SEED)
    with Proxy(cloud.address) as proxy:
        worker = edge(proxy.address, deadline=2.0)
        before = memory().rss
        end = time.monotonic() + size
        with Load(worker, reference, history):
            while time.monotonic() < end:
                latency = rng.uniform(0.025, 0.075)
                proxy.set(latency_s=latency, bytes_per_s=125_000)
                time.sleep(0.1)
        worker.close()
    found = judge(history.events)
    assert found.is_clean, found
    assert not found.degraded
    assert found.slowest_s <= 2.0
    assert memory().rss - before < 50e6


@short_and_long(4.0, 60.0)
def test_resets_in_small_slices(size, cloud, edge, reference, history):
    with Proxy(cloud.address) as proxy:
        worker = edge(proxy.address, deadline=2.0)
        proxy.set(slice_bytes=7)
        end = time.monotonic() + size
        with Load(worker, reference, history, pause_s=0.01):
            while time.monotonic() < end:
                time.sleep(0.5)
                history.add("nemesis", INFO, "gap", "reset")
                proxy.reset()
                history.add("nemesis", INFO, "back", "reset")
        link = worker.stats["link"]
        worker.close()
    found = judge(history.events)
    assert found.is_clean, found
    assert link["attempts"] <= 1.5 * max(link["calls"], 1), link


@short_and_long(1, 5)
def test_rolling_restarts(size, cloud, edge, reference, history):
    worker = edge(cloud.address, deadline=DEADLINE_S)
    with Load(worker, reference, history, pause_s=0.02):
        for _ in range(size):
            time.sleep(1.0)
            statuses = []
            outage(
                history,
                "restarted",
                0.0,
                lambda statuses=statuses: statuses.append(cloud.stop()),
                cloud.start,
            )
            assert statuses == [0]
        wait_for_cloud(worker, reference, within_s=2.0)
    found = judge(history.events)
    assert found.is_clean, found


def test_the_edge_starts_alone(cloud, edge, reference, history):
    cloud.kill()
    started = time.monotonic()
    worker = edge(cloud.address, deadline=DEADLINE_S)
    assert time.monotonic() - started < DEADLINE_S + SLACK_S
    found = worker.predict(reference.x)
    assert set(found.answered_by) == {"edge", "degraded"}
    cloud.start()
    wait_for_cloud(worker, reference, within_s=2.0)
    found = worker.predict(reference.x)
    assert set(found.answered_by) == {"edge", "cloud"}
    assert all(reference.right(np.arange(len(found)), found))


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_soak(cloud, edge, reference, history):
    """Steady load over random faults: nothing grows, nothing is lost."""
    rng = random.Random(SEED)
    here = psutil.Process()
    with Proxy(cloud.address) as proxy:
        worker = edge(proxy.address, deadline=DEADLINE_S)

        def fault():
            kind = rng.choice(["kill", "freeze", "hole", "reset", "none"])
            if kind == "kill":
                outage(history, kind, 0.0, cloud.kill, cloud.start)
            elif kind == "freeze":
                outage(history, kind, 1.0, cloud.freeze, cloud.thaw)
            elif kind == "hole":
                outage(
                    history,
                    kind,
                    1.0,
                    lambda: proxy.set(blackhole=True),
                    proxy.heal,
                )
            elif kind == "reset":
                outage(history, kind, 0.0, proxy.reset, lambda: None)
            time.sleep(3.0)

        sizes = []
        end = time.monotonic() + 180
        with Load(worker, reference, history, pause_s=0.08):
            while time.monotonic() < end:
                fault()
                sizes.append(
                    (
                        time.monotonic(),
                        here.memory_info().rss,
                        here.num_threads(),
                        here.num_fds(),
                    )
                )
        worker.close()
    found = judge(history.events, after_gap_s=5.0)
    assert found.is_clean, found
    warm = np.array(sizes[len(sizes) // 3 :], "float64")
    slope = np.polyfit(warm[:, 0], warm[:, 1], 1)[0] * 60
    assert slope < 1e6, f"{slope / 1e6:.2f} MB a minute"
    assert np.ptp(warm[:, 2]) <= 8 and np.ptp(warm[:, 3]) <= 12


def test_waits_do_not_follow_the_wall_clock(
    cloud, edge, reference, monkeypatch
):
    worker = edge(cloud.address, deadline=DEADLINE_S)
    real = time.time
    for jump in (3600, -3600):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        found = worker.predict(reference.x)
        assert "degraded" not in found.answered_by
    cloud.freeze()
    monkeypatch.setattr(time, "time", lambda: real() - 3600)
    started = time.monotonic()
    found = worker.predict(reference.x[:8])
    assert time.monotonic() - started < DEADLINE_S + SLACK_S
    cloud.thaw()


def test_the_load_notices_a_wrong_answer(cloud, edge, reference, history):
    """A mutation: the checks above have to find a worker that lies."""
    worker = edge(cloud.address, deadline=DEADLINE_S)
    honest = worker.predict

    def lie(x):
        found = honest(x)
        found.predictions[:, :2] = found.predictions[:, 1::-1]
        return found

    worker.predict = lie
    with Load(worker, reference, history, pause_s=0.05):
        time.sleep(1.0)
    assert judge(history.events).wrong
    assert {event.type for event in history.events} <= {INVOKE, OK}
