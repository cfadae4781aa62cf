"""Many played edges against a cloud worker that is a process of its own."""

import concurrent.futures
import json
import time

import numpy as np
import pytest

import keras_earlyexit as ee
from edge_worker import EdgeWorker, cli
from edge_worker.load.recording import record
from edge_worker.load.tally import OUTCOMES, Tally
from keras_earlyexit.bundle import BundleError
from keras_earlyexit.capacity.service import Service
from protos import split_pb2
from protos.errors import CloudFailed, DeadlinePassed, Overloaded


@pytest.fixture
def run(exported, cloud, capsys):
    """Runs the command against the worker; returns status, output, error."""

    def run(*flags, bundle=exported.edge, target=cloud.address):
        status = cli.main(
            [
                *("load", "--bundle", str(bundle), "--cloud", target),
                *("--insecure", "--seconds", "0.5", *flags),
            ]
        )
        return status, *capsys.readouterr()

    return run


def test_every_call_is_answered_and_counted(run, cloud, tmp_path):
    path = tmp_path / "load.json"
    status, out, err = run(
        *("--edges", "40", "--rate", "10", "--deadline", "60"),
        *("--burst-factor", "3", "--rows", "2", "--pid", str(cloud.pid)),
        *("--output", str(path), "--json"),
    )
    assert status == 0, err
    facts = json.loads(out)
    assert facts == json.loads(path.read_text())
    assert facts["answered"] == facts["offered"] > 100
    assert 0 < facts["p50_ms"] <= facts["p99_ms"] <= 60_000
    assert facts["memory_mb"] > 10 and facts["worker_cores"] > 0


@pytest.mark.long
def test_five_hundred_edges(exported, rows, start_cloud, run, wanted):
    """In bursts, with a real edge worker among them; memory stays flat."""
    with (
        start_cloud(exported.cloud, "--insecure", "--max-queue", "64") as cloud,
        EdgeWorker(
            exported.edge, cloud.address, insecure=True, deadline=1.0
        ) as worker,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        playing = pool.submit(
            run,
            *("--edges", "500", "--rate", "0.5", "--seconds", "40"),
            *("--burst-factor", "5", "--deadline", "1", "--json"),
            *("--pid", str(cloud.pid)),
            target=cloud.address,
        )
        slowest = 0.0
        while not playing.done():
            started = time.monotonic()
            found = worker.predict(rows)
            slowest = max(slowest, time.monotonic() - started)
            # Every answer is the model's, or says that it is not.
            whole = np.asarray(found.answered_by) != "degraded"
            np.testing.assert_allclose(
                found.predictions[whole], wanted.predictions[whole], atol=1e-5
            )
        status, out, err = playing.result()
    assert status == 0, err
    facts = json.loads(out)
    assert facts["offered"] == sum(facts[name] for name in OUTCOMES) > 5000
    assert facts["failed"] == facts["degraded"] == 0
    assert facts["answered"] > 0 and facts["slowest_answer_ms"] <= 1000
    assert abs(facts["memory_growth_mb"]) < 8
    # The deadline is kept, give or take what a loaded machine adds.
    assert slowest < 10


def test_late_answers_are_flagged(run):
    status, out, err = run(
        *("--edges", "20", "--rate", "10", "--deadline", "0.000001", "--json")
    )
    assert status == 0, err
    facts = json.loads(out)
    assert facts["past_deadline"] == facts["offered"] > 0


def test_calibration_gives_a_service(run, cloud, tmp_path):
    path = tmp_path / "service.json"
    flags = ("--calibrate", str(path), "--pid", str(cloud.pid))
    status, out, err = run(*flags, "--max-batch", "8")
    assert status == 0, err
    service = Service.load(path)
    assert service.batch_sizes == (1, 2, 4, 8)
    assert service.name == "small" and service.bytes_up > 32
    assert "a call outside the stages" in out


def test_refusals_say_what_to_do(run, exported):
    status, _, err = run("--calibrate", "service.json")
    assert status == 2 and "--pid" in err
    status, _, err = run("--pid", str(2**22 + 1))
    assert status == 2 and "process" in err
    status, _, err = run(bundle=exported.cloud)
    assert status == 4 and "first segment" in err
    status, _, err = run(target="127.0.0.1:1")
    assert status == 5 and "UNAVAILABLE" in err


def test_recordings_hold_what_an_edge_sends(exported, rows):
    bundle = ee.load_bundle(exported.edge)
    staying = bundle.route(rows).feature
    recording = record(bundle, rows, rows=3)
    assert recording.staying == len(staying) / len(rows)
    assert len(recording.contents) == -(-len(staying) // 3)
    request = split_pb2.InferRequest.FromString(
        recording.content(1, "played", 0.25)
    )
    assert request.request_id == "played" and request.timeout_ms == 250
    assert request.generation == recording.identity.generation
    sent = np.frombuffer(request.tensors[0].data, "float32").reshape(3, -1)
    np.testing.assert_array_equal(sent, staying[3:6])
    # All of them stay where nobody is let go.
    assert record(bundle, samples=10).staying == 1
    with pytest.raises(BundleError, match="leave on the edge"):
        bundle.thresholds = -np.inf
        record(bundle, rows)


def test_a_tally_counts_every_call_once():
    tally = Tally(deadline_s=1.0)
    tally.started -= 1.0
    tally.replied(0.5, is_degraded=False)
    tally.replied(0.25, is_degraded=True)
    tally.replied(1.5, is_degraded=False)
    for error in (
        *(DeadlinePassed("late"), TimeoutError(), Overloaded("full")),
        CloudFailed("broken"),
    ):
        tally.failed(error)
    facts = tally.facts(seconds=2.0)
    assert [facts[name] for name in OUTCOMES] == [1, 1, 3, 1, 1]
    assert facts["offered"] == 7 and facts["answered_per_second"] == 0.5
    assert facts["replies_past_deadline"] == 1
    assert (
        facts["slowest_answer_ms"] == 500 and facts["first_error"] == "broken"
    )
