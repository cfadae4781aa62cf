"""Answers, savings and thresholds, with both workers as processes."""

import contextlib
import socket
import subprocess
import sys

import numpy as np
import pytest
from waiting import poll

from keras_earlyexit.live import processes, trying

pytest.importorskip("ai_edge_litert", reason="bundles need LiteRT")


# Starts a worker, says where it listens, and stays.
STARTER = """
import sys
from keras_earlyexit.live import processes
worker = processes.Worker("cloud_worker", *sys.argv[1:])
print(worker.address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def bundles(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("live") / "cut"
    processes.export(model, path)
    return path


@pytest.fixture(scope="module")
def tried(model, data, bundles):
    with contextlib.closing(
        processes.Split(bundles, model.policy.thresholds(2))
    ) as split:
        names = [f"digit {k}" for k in range(10)]
        yield trying.Trying(model, split, *data[:2], names)


def test_workers_answer_as_the_model_does(tried, model, data):
    x, y = data[0]
    tried.set_threshold(0.6)
    wanted = model.predict_exits(x)
    assert len(set(wanted.exit_index)) > 1
    # The first ones of each exit.
    for row, index in enumerate(wanted.exit_index):
        if list(wanted.exit_index[:row]).count(index) >= 4:
            continue
        outcome = tried.answer(x[row], y[row])
        assert outcome.exit_name == model.exit_names[index]
        best = wanted.predictions[row].argmax()
        assert outcome.answer == f"digit {best}"
        assert outcome.label == f"digit {y[row]}"
        at_edge = index < 2
        assert outcome.answered_by == ("edge" if at_edge else "cloud")
        assert (outcome.bytes_up == 0) == at_edge
        assert (outcome.saved_bytes > 0) == at_edge
        assert (outcome.saved_milliseconds is not None) == at_edge
        assert outcome.relative_cost == model.relative_costs[index]
        assert outcome.milliseconds > 0


def test_every_exit_has_an_opinion(tried, model, data):
    x, _ = data[0]
    outcome = tried.answer(x[0])
    predictions = model.net.predict(x[:1], verbose=0)
    for opinion, name in zip(outcome.opinions, model.exit_names, strict=True):
        assert opinion.exit_name == name
        likeliest = predictions[name][0].max()
        assert opinion.probability == pytest.approx(likeliest, abs=1e-5)
    assert [x.is_taken for x in outcome.opinions].count(True) == 1
    assert outcome.opinions[-1].score is None


def test_thresholds_move_the_edge(tried, data):
    x, _ = data[0]
    tried.set_threshold(1.0)
    assert tried.answer(x[0]).answered_by == "cloud"
    dear = tried.figures()
    tried.set_threshold(0.0)
    outcome = tried.answer(x[0])
    assert (outcome.answered_by, outcome.exit_name) == ("edge", "exit_0")
    assert tried.figures()[1] < dear[1]
    label = tried.curve().legends[0].get_texts()[2].get_text()
    assert label.startswith("threshold 0:")


def test_a_risk_is_a_threshold(tried):
    careful, promise = tried.threshold_for(0.1, 0.001)
    bold, _ = tried.threshold_for(0.5, 0.001)
    assert 0 <= bold <= careful <= 1
    assert "0.9" in promise
    assert careful * 1000 == pytest.approx(round(careful * 1000))
    never, apology = tried.threshold_for(0.0001, 0.001)
    assert never == 1 and apology != promise


def test_samples_are_of_all_exits(tried, model):
    tried.set_threshold(0.6)
    chosen = tried.samples_by_exit(3)
    assert len(chosen) == len(set(chosen))
    taken = model.predict_exits(tried.x[chosen]).exit_index
    assert (np.diff(taken) >= 0).all() and len(set(taken)) > 1


def test_without_the_cloud_answers_are_degraded(tried, data):
    x, _ = data[0]
    tried.set_threshold(1.0)
    tried.split.cut_off()
    tried.split.cut_off()
    assert not tried.split.is_reachable
    outcome = tried.answer(x[0])
    assert (outcome.answered_by, outcome.exit_name) == ("degraded", "exit_1")
    # The edge worker starts without the cloud too.
    tried.set_threshold(0.99)
    tried.set_threshold(1.0)
    assert tried.answer(x[0]).answered_by == "degraded"
    tried.split.restore()
    assert tried.answer(x[0]).answered_by == "cloud"


def test_workers_end_even_if_the_page_is_killed(bundles):
    flags = ("--bundle", bundles / "segment_1", "--listen", "127.0.0.1:0")
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, *map(str, flags)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as starter:
        host, port = starter.stdout.readline().strip().rsplit(":", 1)
        listens = connects(host, port)
        starter.kill()
    assert listens
    poll(lambda: not connects(host, port), 60)


def connects(host, port):
    with contextlib.suppress(ConnectionError):
        socket.create_connection((host, int(port)), 10).close()
        return True
    return False
