"""The two workers behind the page, as processes on loopback.

The library knows nothing of the workers but their commands. Ports are chosen
by the system; a worker says on its first line where it listens.
"""

import contextlib
import http.client
import json
import queue
import subprocess
import sys
import threading
import time
import typing

import numpy as np

import keras_earlyexit as ee
from keras_earlyexit import supervision

_START_S = 120.0
_ANSWER_S = 30.0
_END_S = 20.0


class Reply(typing.NamedTuple):
    """What the workers answered to one sample.

    Args:
        prediction: Array, in the head's own form.
        exit_index: Which exit answered.
        answered_by: `"edge"`, `"cloud"` or `"degraded"`.
        milliseconds: How long the edge worker took, the cloud's part included.
        bytes_up: Bytes that were sent to the cloud worker.
        bytes_down: Bytes that came back.
    """

    prediction: np.ndarray
    exit_index: int
    answered_by: str
    milliseconds: float
    bytes_up: int
    bytes_down: int


class Worker:
    """A worker process that writes lines of JSON.

    Args:
        module: `"edge_worker"` or `"cloud_worker"`.
        *arguments: Of its command `serve`, as text.

    Raises:
        RuntimeError: If it ends before it listens.
        TimeoutError: If it does not listen in time.
    """

    def __init__(self, module, *arguments):
        self._lines = queue.SimpleQueue()
        self._process = supervision.start(
            [sys.executable, "-m", module, "serve", "--insecure", *arguments],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.address = self.line("address", _START_S)["address"]
        except BaseException:
            self.stop()
            raise

    def line(self, key, within_s):
        """The next line that has a key; those in front of it are dropped."""
        ends_at = time.monotonic() + within_s
        while True:
            try:
                left_s = max(ends_at - time.monotonic(), 0)
                found = self._lines.get(timeout=left_s)
            except queue.Empty:
                raise TimeoutError(
                    f"No line with {key!r} within {within_s:g} s."
                ) from None
            if found is None:
                raise RuntimeError("The worker has ended.")
            if key in found:
                return found

    def stop(self):
        """Lets it answer what it has, and ends it."""
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdin.close()
        self._process.stdout.close()

    def _read(self):
        for text in self._process.stdout:
            with contextlib.suppress(ValueError):
                found = json.loads(text)
                if isinstance(found, dict):
                    self._lines.put(found)
        self._lines.put(None)


def export(model, path):
    """Cuts a model behind its last early exit, and writes both bundles.

    Thresholds then matter at the edge only, and changing them leaves the
    cloud worker alone.

    Args:
        model: An `EarlyExitModel`.
        path: A folder that does not exist.
    """
    ee.export(model, path, cut=model.exit_names[-2])


class Split:
    """A model that runs as an edge worker and a cloud worker.

    Args:
        bundles: The folder that `export` made.
        thresholds: One for each early exit.
    """

    def __init__(self, bundles, thresholds):
        self._bundles = [bundles / f"segment_{k}" for k in range(2)]
        self._lock = threading.RLock()
        self._cloud = self._edge = None
        self._thresholds = np.asarray(thresholds)
        self._cloud = self._start_cloud("127.0.0.1:0")
        self._address = self._cloud.address
        try:
            self._start_edge()
        except BaseException:
            self.close()
            raise

    @property
    def is_reachable(self):
        """Whether the cloud worker runs."""
        return self._cloud is not None

    def ask(self, sample):
        """Answers one sample, as `Reply`.

        Args:
            sample: Array, an input of the model without the batch.
        """
        body = json.dumps({"inputs": [np.asarray(sample).tolist()]})
        with self._lock:
            (answer,) = self._http("POST", "/predict", body)["answers"]
            line = self._edge.line("how", _ANSWER_S)
        return Reply(
            prediction=np.asarray(answer["prediction"]),
            exit_index=answer["exit"],
            answered_by=answer["answered_by"],
            milliseconds=line["ms"],
            bytes_up=line["bytes_up"],
            bytes_down=line["bytes_down"],
        )

    def set_thresholds(self, thresholds):
        """Starts the edge worker anew with other thresholds.

        Args:
            thresholds: One for each early exit.
        """
        with self._lock:
            if np.array_equal(thresholds, self._thresholds):
                return
            self._thresholds = np.asarray(thresholds)
            self._edge.stop()
            self._start_edge()

    def cut_off(self):
        """Ends the cloud worker, as a network that fails would."""
        with self._lock:
            if self._cloud is not None:
                self._cloud.stop()
                self._cloud = None

    def restore(self):
        """Starts the cloud worker again, and waits until the edge knows."""
        with self._lock:
            if self._cloud is None:
                self._cloud = self._start_cloud(self._address)
                self._wait_for_cloud()

    def close(self):
        """Ends both processes."""
        with self._lock:
            for worker in (self._edge, self._cloud):
                if worker is not None:
                    worker.stop()
            self._edge = self._cloud = None

    def _start_cloud(self, address):
        return Worker(
            "cloud_worker",
            *("--bundle", str(self._bundles[1]), "--listen", address),
            *("--log-level", "warning"),
        )

    def _start_edge(self):
        thresholds = [f"--threshold={float(t)!r}" for t in self._thresholds]
        self._edge = Worker(
            "edge_worker",
            *("--bundle", str(self._bundles[0]), "--cloud", self._address),
            *("--listen", "127.0.0.1:0"),
            *thresholds,
        )
        if self._cloud is not None:
            self._wait_for_cloud()

    def _wait_for_cloud(self):
        ends_at = time.monotonic() + _START_S
        while not self._http("GET", "/health")["cloud"]:
            if time.monotonic() > ends_at:
                raise TimeoutError("The edge does not find the cloud worker.")
            time.sleep(0.05)

    def _http(self, method, path, body=None):
        connection = http.client.HTTPConnection(
            self._edge.address, timeout=_ANSWER_S
        )
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            content = json.loads(reply.read())
        if reply.status != 200:
            raise RuntimeError(f"The edge worker says: {content['error']}")
        return content
