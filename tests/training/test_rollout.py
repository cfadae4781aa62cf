"""What was trained takes over from what answers, both as processes, under load.

Programs ask the edge worker over HTTP and gRPC all the time, while further
processes train and publish. Each answer is compared with whole models.
"""

import contextlib
import itertools
import json
import threading

import grpc
import keras
import numpy as np
import pytest
from bundling import make_model, set_thresholds
from edge_serving import EdgeProcess
from waiting import poll

import keras_earlyexit as ee
from keras_earlyexit import snapshots
from keras_earlyexit.bundle import load_bundle
from protos import split_pb2, split_pb2_grpc
from protos.identity import Feature, Identity
from protos.options import open_channel
from protos.tensors import decode, encode

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
ROWS = 5
EPOCHS = (3, 6)
PREDICTIONS = Feature("predictions", (None, 4), "float32")
EXIT_INDEX = Feature("exit_index", (None,), "int32")


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 200)
    x = (rng.normal(size=(200, 6)) + 2 * np.eye(4, 6)[y]).astype("float32")
    model = make_model()
    set_thresholds(model, x)
    model.save(tmp_path / "model.keras")
    ee.export(model, tmp_path / "cut", cut="exit_0")
    np.savez(tmp_path / "data.npz", x=x, y=y)
    return tmp_path


def whole(folder, both=None):
    """Answers of the whole model: as it was, or as both sides have it now."""
    model = keras.models.load_model(folder / "model.keras")
    if both is not None:
        halves = ee.split(model, "exit_0")
        for half, side in zip(halves, ("edge", "cloud"), strict=True):
            half.compile("adam")
            snapshots.restore(half, both.state(side))
    x = np.load(folder / "data.npz")["x"]
    found = model.predict_exits(x)
    return found.predictions, found.exit_index


class OverHTTP:
    """A program that asks over HTTP."""

    def __init__(self, edge, folder):
        self._edge = edge

    def ask(self, rows):
        code, content = self._edge.ask(
            "POST", "/predict", {"inputs": rows.tolist()}
        )
        assert code == 200, content
        answers = content["answers"]
        assert "degraded" not in [x["answered_by"] for x in answers]
        return (
            np.array([x["prediction"] for x in answers]),
            np.array([x["exit"] for x in answers]),
        )

    def close(self):
        """There is a connection for each request."""


class OverGRPC:
    """A program that asks over gRPC, and knows the bundle by its manifest."""

    def __init__(self, edge, folder):
        self._path = folder / "cut" / "segment_0"
        self._channel = open_channel(edge.grpc, None, 1 << 22)
        self._stub = split_pb2_grpc.SplitStub(self._channel)
        self._generation = self._meet()

    def ask(self, rows):
        request = split_pb2.InferRequest(
            generation=self._generation, tensors=[encode(rows)]
        )
        try:
            reply = self._stub.Infer(request, timeout=60)
        except grpc.RpcError as error:
            # Another generation answers now, or soon.
            if error.code() != grpc.StatusCode.FAILED_PRECONDITION:
                raise
            self._generation = self._meet()
            return self.ask(rows)
        assert not reply.degraded
        return (
            decode(reply.predictions, PREDICTIONS, ROWS),
            decode(reply.exit_index, EXIT_INDEX, ROWS),
        )

    def _meet(self):
        found = []

        def is_met():
            # In the moment of an exchange there may be no manifest.
            with contextlib.suppress(FileNotFoundError):
                manifest = load_bundle(self._path).manifest
                hello = self._stub.Hello(
                    Identity.of(manifest, 0).hello(), timeout=60
                )
                found.append(hello.generation)
                return hello.accepted
            return False

        poll(is_met, 120)
        return found[-1]

    def close(self):
        self._channel.close()


class Asking:
    """A thread that asks again and again, and notes what it was told."""

    def __init__(self, client, x, seed):
        self.answers, self.error = [], None
        self._client, self._x, self._seed = client, x, seed
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        rng = np.random.default_rng(self._seed)
        try:
            while not self._ending.wait(0.01):
                rows = rng.integers(0, len(self._x), ROWS)
                self.answers.append((rows, *self._client.ask(self._x[rows])))
        except BaseException as error:
            self.error = error

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ending.set()
        self._thread.join(120)
        self._client.close()


def generations_of(answers, references):
    """Which generation has given each answer: never one before the last."""
    found, least = [], 0
    for rows, predictions, exits in answers:
        fits = [
            number
            for number, (whole_predictions, whole_exits) in enumerate(
                references
            )
            if np.array_equal(exits, whole_exits[rows])
            and np.allclose(predictions, whole_predictions[rows], atol=1e-4)
        ]
        assert fits, "an answer that no generation would give"
        later = [number for number in fits if number >= least]
        assert later, f"generation {fits} after {least}"
        least = later[0]
        found.append(least)
    return found


def test_generations_take_over_from_each_other_under_load(run, folder):
    both = run("rollout")
    both.environment["CLOUD_WORKER_RELOAD_EVERY_S"] = "0.1"
    halves = [folder / "cut" / f"segment_{i}" for i in (0, 1)]
    both.start(
        "cloud",
        *("--bundle", halves[1], "--publish", halves[1]),
        *("--commit-every", 5),
    )
    poll(lambda: "listening on" in both.log("cloud"), 300)
    x = np.load(folder / "data.npz")["x"]
    references = [whole(folder)]
    with contextlib.ExitStack() as stack:
        edge = stack.enter_context(
            EdgeProcess(
                halves[0],
                both.address("cloud"),
                folder / "serve.log",
                *("--deadline", "60", "--reload-every-s", "0.1"),
            )
        )
        clients = [
            stack.enter_context(Asking(kind(edge, folder), x, seed))
            for seed, kind in enumerate((OverHTTP, OverGRPC) * 2)
        ]

        def have_more(than):
            for client, count in zip(clients, than, strict=True):
                if client.error:
                    raise client.error
                if len(client.answers) < count + 20:
                    return False
            return True

        poll(lambda: have_more([0] * 4), 300)
        for epochs in EPOCHS:
            summary = folder / f"summary_{epochs}.json"
            both.start(
                "edge",
                *("--data", folder / "data.npz", "--epochs", epochs),
                *("--publish", halves[0], "--summary", summary),
            )
            both.wait("edge", 600)
            references.append(whole(folder, both))
            name = json.loads(summary.read_text())["generation"]
            poll(
                lambda name=name: (
                    edge.ask("GET", "/stats")[1]["generation"] == name
                ),
                300,
            )
            counts = [len(client.answers) for client in clients]
            poll(lambda counts=counts: have_more(counts), 300)
    for one, other in itertools.pairwise(references):
        assert np.abs(one[0] - other[0]).max() > 0.05
    for client in clients:
        assert client.error is None
        # Each of them has answered, one after the other.
        found = generations_of(client.answers, references)
        assert set(found) == {0, 1, 2}
    # And nothing was answered that nobody has heard of.
    lines = [x for x in edge.lines() if x["message"] == "request"]
    answered = [x for x in lines if x["code"] in (200, "OK") and "rows" in x]
    heard = sum(len(client.answers) for client in clients)
    assert len(answered) == heard
