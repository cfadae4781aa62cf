"""Changes over to a new generation without a stop."""

import contextlib
import logging
import threading

from keras_earlyexit.bundle.watching import Watch
from protos.errors import SplitError

logger = logging.getLogger("edge_worker")


class ReloadingWorker:
    """An `EdgeWorker` that takes over a bundle that changes in its place.

    The new half answers only once the cloud worker has the other one: until
    then the old halves go on. A call is answered by one generation from its
    start to its end.

    Args:
        start: A function that starts an `EdgeWorker` from the bundle.
        path: The folder of the bundle.
        every_s: How often to look.

    Raises:
        Exception: As `start`.

    Example:

    ```python
    start = lambda: EdgeWorker("cut/segment_0", "cloud:50051", **settings)
    with ReloadingWorker(start, "cut/segment_0") as worker:
        result = worker.predict(x)
    ```
    """

    def __init__(self, start, path, every_s=1.0):
        self._start, self._every_s = start, every_s
        # Before it is loaded: what changes meanwhile is seen.
        self._watch = Watch([path])
        self._lock = threading.Lock()
        self._current = _Shared(start())
        self._generation = _name(self._current.worker)
        #: Generations that were taken over.
        self.reloads = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="edge-reload", daemon=True
        )
        self._thread.start()

    @property
    def bundle(self):
        """The `Bundle` that answers here."""
        return self._current.worker.bundle

    @property
    def is_connected(self):
        """Whether the cloud worker answers."""
        return self._current.worker.is_connected

    @property
    def stats(self):
        """As `EdgeWorker.stats`, of the generation that answers now."""
        stats = self._current.worker.stats
        return {
            **stats,
            "generation": self._generation,
            "reloads": self.reloads,
        }

    def predict(self, x, batch_size=None):
        """As `EdgeWorker.predict`."""
        with self._using() as worker:
            return worker.predict(x, batch_size)

    def close(self):
        """Looks no more, and closes the connection to the cloud worker."""
        self._stopping.set()
        self._thread.join()
        self._current.release()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @contextlib.contextmanager
    def _using(self):
        with self._lock:
            shared = self._current
            shared.take()
        try:
            yield shared.worker
        finally:
            shared.release()

    def _run(self):
        is_new = False
        while not self._stopping.wait(self._every_s):
            is_new = bool(self._watch.changed()) or is_new
            if is_new:
                is_new = not self._take_over()

    def _take_over(self):
        """Whether that is done; else it is tried again."""
        try:
            worker = self._start()
        # Whatever is wrong with it, the old one goes on.
        except SplitError as error:
            logger.info("the other half is not there yet: %s", error)
            return False
        except Exception as error:
            logger.error("not reloaded: %s", error)
            return True
        if not worker.is_connected:
            worker.close()
            return False
        with self._lock:
            before, self._current = self._current, _Shared(worker)
            self._generation = _name(worker)
            self.reloads += 1
        before.release()
        logger.info("reloaded: %s", self._generation)
        return True


class _Shared:
    """A worker that is closed when its last user is done."""

    def __init__(self, worker):
        self.worker = worker
        self._users = 1
        self._lock = threading.Lock()

    def take(self):
        with self._lock:
            self._users += 1

    def release(self):
        with self._lock:
            self._users -= 1
            if self._users:
                return
        self.worker.close()


def _name(worker):
    return worker.bundle.manifest.weights_sha256
