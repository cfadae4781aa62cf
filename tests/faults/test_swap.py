"""A generation is exchanged while edges of both are being answered."""

import contextlib
import shutil

import pytest
from faults.clients import Load, wait_for_cloud
from faults.history import History, judge
from faults.workers import CloudProcess
from waiting import poll

from edge_worker import EdgeWorker


def exchange(bundle, served, aside):
    """Puts a copy of a bundle in the place of the one that is served."""
    shutil.copytree(bundle, aside / "new")
    served.rename(aside / "old")
    (aside / "new").rename(served)
    shutil.rmtree(aside / "old")


@pytest.mark.parametrize(
    ("requests", "swaps"),
    [
        pytest.param(300, 1, id="short"),
        pytest.param(
            5000,
            9,
            id="long",
            marks=[pytest.mark.faults, pytest.mark.timeout(900)],
        ),
    ],
)
def test_swapped_under_load(requests, swaps, parts, newer_parts, tmp_path):
    served = tmp_path / "served"
    generations = [parts, newer_parts]
    shutil.copytree(parts[0] / "segment_1", served)
    workers, histories = [], []
    with contextlib.ExitStack() as stack:
        cloud = stack.enter_context(
            CloudProcess(
                served,
                tmp_path / "cloud.log",
                *("--reload-every-s", "0.1", "--drain-s", "600"),
            )
        )

        def start(number):
            """Edges of a generation, which go on from now on."""
            folder, reference = generations[number]
            worker = EdgeWorker(
                folder / "segment_0",
                cloud.address,
                insecure=True,
                deadline=20.0,
            )
            stack.callback(worker.close)
            wait_for_cloud(worker, reference, within_s=10.0)
            history = History(tmp_path / f"history_{number}.jsonl")
            stack.enter_context(Load(worker, reference, history, pause_s=0.005))
            workers.append(worker)
            histories.append(history)

        def have_answered(least):
            calls = [worker.stats["calls"] for worker in workers]
            return sum(calls) >= least and min(calls) >= least / 5

        start(0)
        poll(lambda: have_answered(50), within_s=60)
        for swap in range(swaps):
            number = (swap + 1) % 2
            exchange(generations[number][0] / "segment_1", served, tmp_path)
            poll(lambda n=swap: _reloads(cloud) > n, within_s=60)
            if len(workers) == 1:
                start(1)
            least = requests * (swap + 1) / swaps
            poll(lambda least=least: have_answered(least), within_s=600)
    found = [judge(history.events) for history in histories]
    for history in histories:
        history.close()
    assert sum(verdict.requests for verdict in found) >= requests
    for verdict in found:
        assert verdict.is_clean, verdict
        # Not even for a moment was there nobody to answer either.
        assert not verdict.degraded


def _reloads(cloud):
    return cloud.log_text().count('"message": "reloaded"')
