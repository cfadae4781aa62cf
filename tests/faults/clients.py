"""Clients in a closed loop; every answer is compared with the whole model's."""

import dataclasses
import threading
import time

import numpy as np
from faults.history import FAIL, INVOKE, OK

CLIENTS = 4


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the whole model answers.

    Args:
        x: The inputs.
        result: The `ExitResult` of the bundle that was not cut.
    """

    x: np.ndarray
    result: object

    def right(self, rows, found):
        """Whether each answer to some rows is the whole model's."""
        same_exit = found.exit_index == self.result.exit_index[rows]
        close = np.isclose(
            found.predictions, self.result.predictions[rows], atol=1e-4
        )
        return (same_exit & close.all(axis=-1)).tolist()


class Load:
    """Several clients that ask one edge worker again and again.

    Args:
        worker: An `EdgeWorker`.
        reference: A `Reference`.
        history: A `History`.
        pause_s: Seconds between an answer and the next request.
        seed: Of the rows that are asked for.
    """

    def __init__(self, worker, reference, history, pause_s=0.0, seed=0):
        self._worker = worker
        self._reference = reference
        self._history = history
        self._pause_s = pause_s
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(f"client-{i}", seed + i))
            for i in range(CLIENTS)
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._ending.set()
        for thread in self._threads:
            # Longer than any deadline: a thread that hangs is a fault.
            thread.join(30)
            assert not thread.is_alive(), "a request hangs"

    def _run(self, name, seed):
        rng, count = np.random.default_rng(seed), 0
        while not self._ending.wait(self._pause_s):
            rows = rng.integers(0, len(self._reference.x), rng.integers(1, 6))
            id_, count = f"{name}:{count}", count + 1
            self._history.add(name, INVOKE, id_)
            try:
                found = self._worker.predict(self._reference.x[rows])
            except Exception as error:
                self._history.add(name, FAIL, id_, repr(error))
            else:
                value = {
                    "rows": len(rows),
                    "answered_by": found.answered_by.tolist(),
                    "right": self._reference.right(rows, found),
                }
                self._history.add(name, OK, id_, value)


def wait_for_cloud(worker, reference, within_s):
    """Seconds until an answer comes from the cloud again."""
    rows = np.flatnonzero(reference.result.exit_index > 0)[:1]
    started = time.monotonic()
    while time.monotonic() - started < within_s:
        if worker.predict(reference.x[rows]).answered_by[0] == "cloud":
            return time.monotonic() - started
        time.sleep(0.02)
    raise AssertionError(f"no answer from the cloud within {within_s} s")
