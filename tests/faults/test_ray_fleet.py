"""Replicas on Ray Serve with certificates, two models and a newer generation.

All of it at once: each is tested alone elsewhere.
"""

import contextlib
import shutil

import pytest
from faults.clients import Load, wait_for_cloud
from faults.conftest import export
from faults.history import History, judge
from faults.on_ray import DEADLINE_S, MARKS, WITHIN_S
from faults.test_swap import exchange
from faults.workers import CloudProcess
from waiting import poll

from edge_worker import EdgeWorker
from keras_earlyexit.cli._pki import Authority
from protos.errors import NotAllowed, VersionMismatch

pytestmark = MARKS


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """Folder with certificates of a worker and two edges, and a stranger's."""
    folder = tmp_path_factory.mktemp("pki")
    for prefix in ("", "other_"):
        authority = Authority.make()
        for name, pem in (
            ("ca", authority.pem()),
            ("cloud", authority.sign_server(["127.0.0.1"], 1)),
            ("edge-1", authority.sign_edge("edge-1", 1)),
            ("edge-2", authority.sign_edge("edge-2", 1)),
        ):
            (folder / f"{prefix}{name}.pem").write_bytes(pem[0])
            (folder / f"{prefix}{name}.key").write_bytes(pem[1])
    return folder


def files(pki, name):
    return {
        "ca": pki / "ca.pem",
        "cert": pki / f"{name}.pem",
        "key": pki / f"{name}.key",
    }


def test_all_of_it_at_once(parts, newer_parts, pki, tmp_path):
    served = tmp_path / "served"
    shutil.copytree(parts[0] / "segment_1", served)
    (tmp_path / "other").mkdir()
    other = export(tmp_path / "other", seed=2)
    with contextlib.ExitStack() as stack:
        cloud = stack.enter_context(
            CloudProcess(
                served,
                tmp_path / "cloud.log",
                *("--bundle", other[0] / "segment_1"),
                *("--engine", "ray", "--replicas", "2"),
                *("--reload-every-s", "0.2", "--drain-s", "600"),
                *("--tls-cert", pki / "cloud.pem"),
                *("--tls-key", pki / "cloud.key"),
                *("--client-ca", pki / "ca.pem"),
                start_s=600,
                insecure=False,
            )
        )
        # Ray's own processes end with it only if it is asked.
        stack.callback(cloud.stop)

        def worker(generation, name):
            found = EdgeWorker(
                generation[0] / "segment_0",
                cloud.address,
                deadline=DEADLINE_S,
                **files(pki, name),
            )
            stack.callback(found.close)
            return found

        def start(generation, name):
            """An edge that goes on asking from now on."""
            found = worker(generation, name)
            wait_for_cloud(found, generation[1], within_s=WITHIN_S)
            history = History(tmp_path / f"history_{len(histories)}.jsonl")
            stack.enter_context(
                Load(found, generation[1], history, pause_s=0.05)
            )
            workers.append(found)
            histories.append(history)

        def is_served(generation):
            try:
                worker(generation, "edge-1")
            except VersionMismatch:
                return False
            return True

        def answered(more):
            """Waits until every edge has had so many answers more."""
            least = [found.stats["calls"] + more for found in workers]
            poll(
                lambda: all(
                    found.stats["calls"] >= count
                    for found, count in zip(workers, least, strict=True)
                ),
                within_s=WITHIN_S,
            )

        workers, histories = [], []
        start(parts, "edge-1")
        start(other, "edge-2")
        with pytest.raises(NotAllowed):
            worker(parts, "other_edge-1")
        answered(50)
        assert not is_served(newer_parts)
        exchange(newer_parts[0] / "segment_1", served, tmp_path)
        poll(lambda: is_served(newer_parts), within_s=WITHIN_S)
        start(newer_parts, "edge-1")
        answered(100)
    verdicts = [judge(history.events) for history in histories]
    for history in histories:
        history.close()
    for found in verdicts:
        assert found.is_clean, found
        assert found.samples > 100
        # Not even while replicas knew different generations.
        assert not found.degraded
