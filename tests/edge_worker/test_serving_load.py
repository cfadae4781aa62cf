"""The HTTP server under many callers, and callers that are not meant."""

import collections
import concurrent.futures
import contextlib
import http.client
import io
import json
import socket

import pytest

from edge_worker import EdgeWorker
from edge_worker.serving import http as serving
from edge_worker.serving.requests import RequestLog


@pytest.fixture
def log():
    return io.StringIO()


@pytest.fixture
def server(exported, cloud, log):
    with EdgeWorker(exported.edge, cloud.address, insecure=True) as worker:
        server = serving.HTTPServer("127.0.0.1:0", worker, RequestLog(log))
        server.start()
        yield server
        server.stop()


def ask(server, method="GET", path="/health", body=None, **headers):
    """Status and content of an answer."""
    connection = http.client.HTTPConnection(server.address, timeout=20)
    with contextlib.closing(connection):
        headers = {"Content-Type": "application/json", **headers}
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_many_callers_at_once(server, log, rows):
    body = json.dumps({"inputs": rows[:4].tolist()})
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        found = list(
            pool.map(
                lambda _: ask(server, "POST", "/predict", body)[0], range(400)
            )
        )
    assert collections.Counter(found) == {200: 400}
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [line["code"] for line in lines] == [200] * 400


@pytest.mark.parametrize(
    ("host", "is_meant"),
    [
        ("127.0.0.1", True),
        ("localhost:8080", True),
        ("[::1]:8080", True),
        ("example.org", False),
        ("example.org:8080", False),
        ("127.0.0.1.example.org", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_names_that_others_may_point_here(server, rows, host, is_meant):
    body = json.dumps({"inputs": rows[:1].tolist()})
    code = 200 if is_meant else 421
    assert ask(server, "POST", "/predict", body, Host=host)[0] == code
    for path in ("/health", "/stats"):
        assert ask(server, path=path, Host=host)[0] == code


def test_too_many_connections_are_told_so(exported, cloud, log, monkeypatch):
    monkeypatch.setattr(serving, "_MAX_CONNECTIONS", 2)
    monkeypatch.setattr(serving, "_SLOT_TIMEOUT_S", 0.1)
    with (
        EdgeWorker(exported.edge, cloud.address, insecure=True) as worker,
        contextlib.ExitStack() as stack,
    ):
        server = serving.HTTPServer("127.0.0.1:0", worker, RequestLog(log))
        server.start()
        stack.callback(server.stop)
        address = serving.check_loopback(server.address)
        with contextlib.ExitStack() as idle:
            for _ in range(2):
                idle.enter_context(socket.create_connection(address))
            code, content = ask(server)
            assert code == 503
            assert "Come back" in content["error"]
        assert ask(server)[0] == 200
