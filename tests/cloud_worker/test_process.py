"""The command as a real process: it starts, says where, drains and ends."""

import json
import os
import pathlib
import queue
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request

import grpc
import pytest
from cloud_serving import Client, features, identity_of, request_of
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from waiting import poll

import keras_earlyexit as ee

ROOT = pathlib.Path(__file__).resolve().parents[2]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SPLIT = "keras_earlyexit.split.v1.Split"


class Process:
    """`python -m cloud_worker serve` with some flags, and what it logs."""

    def __init__(self, *flags):
        self.lines, self._listens = [], threading.Event()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cloud_worker", "serve", *map(str, flags)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._threads = [
            threading.Thread(target=self._read),
            threading.Thread(target=self._read_errors),
        ]
        self.errors = ""
        for thread in self._threads:
            thread.start()

    def _read(self):
        for line in self._process.stdout:
            self.lines.append(json.loads(line))
            self._listens.set()
        self._listens.set()

    def _read_errors(self):
        self.errors = self._process.stderr.read()

    def listening(self):
        """The line that says where it listens."""
        assert self._listens.wait(60)
        (line,) = [x for x in self.lines if "listening on" in x["message"]]
        return line

    def signal(self, number):
        self._process.send_signal(number)

    def end(self, timeout_s=30):
        """Waits for the end; returns the exit status."""
        try:
            return self._process.wait(timeout_s)
        finally:
            self.close()

    def close(self):
        """Ends it if it still runs, and closes what is read."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for thread in self._threads:
            thread.join()
        self._process.stdout.close()
        self._process.stderr.close()


@pytest.fixture
def start():
    running = []

    def make(*flags):
        running.append(Process(*flags))
        return running[-1]

    yield make
    for process in running:
        process.close()


LOCAL = ("--insecure", "--listen", "127.0.0.1:0")


def metrics_of(line):
    """The metrics of the worker that logged a line of `listening`."""
    url = f"http://127.0.0.1:{line['metrics_port']}/metrics"
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read().decode()


def test_it_serves_and_drains(start, folders):
    whole = ee.load_bundle(folders / "whole")
    process = start("--bundle", folders / "whole", "--metrics-port", 0, *LOCAL)
    line = process.listening()
    assert line["message"] == f"listening on {line['address']}"
    identity = identity_of(whole)
    with Client(line["address"]) as peer:
        health = health_pb2_grpc.HealthStub(peer.channel)

        def check(service):
            request = health_pb2.HealthCheckRequest(service=service)
            return health.Check(request, timeout=60).status

        assert check("") == check(SPLIT) == SERVING
        assert check("train") == NOT_SERVING
        watched = health.Watch(
            health_pb2.HealthCheckRequest(service=SPLIT), timeout=30
        )
        assert next(watched).status == SERVING
        requests = queue.SimpleQueue()
        stream = peer.stub.InferStream(iter(requests.get, None), timeout=30)
        requests.put(request_of(identity, features(3), id="a" * 32))
        assert next(stream).request_id == "a" * 32
        assert 'cloud_worker_requests_total{code="OK"} 1.0' in metrics_of(line)
        process.signal(signal.SIGTERM)
        # Not serving is said first, while calls are still answered.
        assert next(watched).status == NOT_SERVING
        with pytest.raises(grpc.RpcError) as error:
            next(stream)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        requests.put(None)
    assert process.end(10) == 0
    messages = [line["message"] for line in process.lines]
    assert "stopping" in messages and messages[-1] == "stopped"
    (logged,) = [x for x in process.lines if x["message"] == "request"]
    assert logged["request_id"] == "a" * 32 and logged["rows"] == 3


def test_what_is_in_flight_is_answered(start, folders):
    whole = ee.load_bundle(folders / "whole")
    # A full batch is waited for, so that a request stays in flight.
    process = start(
        *("--bundle", folders / "whole", "--max-delay-ms", 3000),
        *("--metrics-port", 0),
        *LOCAL,
    )
    line = process.listening()
    with Client(line["address"]) as peer:
        request = request_of(identity_of(whole), features(3))
        single = peer.stub.Infer.future(request, timeout=20)
        requests = queue.SimpleQueue()
        stream = peer.stub.InferStream(iter(requests.get, None), timeout=20)
        requests.put(request)
        both = "cloud_worker_in_flight_requests 2.0"
        poll(lambda: both in metrics_of(line))
        process.signal(signal.SIGTERM)
        assert single.result().request_id == request.request_id
        assert next(stream).status.code == 0
        requests.put(None)
    assert process.end(10) == 0


def test_reflection(serve, client, folders):
    peer = client(serve(folders / "whole").address)
    stub = reflection_pb2_grpc.ServerReflectionStub(peer.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (reply,) = stub.ServerReflectionInfo(iter([request]), timeout=60)
    names = {x.name for x in reply.list_services_response.service}
    assert {SPLIT, "grpc.health.v1.Health"} < names


def test_sighup_reloads(start, folders, tmp_path):
    source = tmp_path / "served"
    shutil.copytree(folders / "whole", source)
    process = start("--bundle", source, "--reload-every-s", 0, *LOCAL)
    process.listening()
    source.rename(tmp_path / "old")
    shutil.copytree(folders / "other", source)
    process.signal(signal.SIGHUP)
    poll(lambda: any(x["message"] == "reloaded" for x in process.lines))
    process.signal(signal.SIGINT)
    assert process.end() == 0


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (("--bundle", "nowhere", "--insecure"), 4, "manifest.json"),
        (("--insecure",), 2, "--bundle"),
        (("--bundle", "{}", "--insecure", "--listen", "0.0.0.0:0"), 4, "TLS"),
        (
            (
                *("--bundle", "{}", "--insecure", "--forward-insecure"),
                *("--forward", "example.org:1"),
            ),
            4,
            "loopback",
        ),
    ],
)
def test_what_cannot_start_says_why(flags, code, text, start, folders):
    flags = [flag.format(folders / "whole") for flag in flags]
    process = start(*flags)
    assert process.end() == code
    assert text in process.errors and "Traceback" not in process.errors
    assert not process.lines
