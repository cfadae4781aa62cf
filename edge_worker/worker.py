"""The edge worker: answers what leaves here, asks for what does not."""

import collections
import concurrent.futures
import logging
import time
from typing import NamedTuple

import numpy as np

from edge_worker.capping import OffloadCap
from edge_worker.config import EdgeConfig
from edge_worker.merging import Merging
from edge_worker.offloading import Offloading
from edge_worker.stats import Stats
from keras_earlyexit.bundle import Bundle, load_bundle
from keras_earlyexit.bundle.answering import DEFAULT_BATCH_SIZE
from keras_earlyexit.bundle.specs import fit_inputs, refuse_nan
from protos.errors import NotAllowed, SplitError, VersionMismatch

logger = logging.getLogger("edge_worker")
#: A link keeps its deadline. This is for the day on which it does not.
_GRACE_S = 1.0
#: Batches of one call that wait, and bytes of their features, which stay in
#: memory until then: a batch more is routed only below that.
_MAX_WAITING = 4
_MAX_WAITING_BYTES = 8 << 20


class _Sent(NamedTuple):
    """Rows that were sent on, and what is waited for."""

    rows: np.ndarray
    future: concurrent.futures.Future
    ends_at: float
    num_bytes: int


class EdgeWorker:
    """Answers samples at this machine's exits, the others in the cloud.

    It works without the cloud worker, from the start if need be: samples that
    should have gone on get the answer of the last exit here, marked as
    `"degraded"`, within the deadline; from the second one on, at once. It comes
    back by itself. Several threads may use one worker.

    Args:
        bundle: The first segment of a model that was cut: its folder, or a
            `Bundle`.
        target: `"host:port"` of the cloud worker.
        thresholds: As `Bundle.thresholds`, for the exits here; `None` takes
            the bundle's.
        num_threads: As for `ee.load_bundle`.
        **settings: Fields of `EdgeConfig`: `deadline`, `insecure`, `ca`,
            `cert`, `key`, `token`, `edge_id`, `codec`, `offload`,
            `allow_raw_input`, `offload_rows_per_s`, `max_offload_share`,
            `max_in_flight`.

    Raises:
        ValueError: If a setting is wrong, or the bundle cannot be used.
        FileNotFoundError: If there is no bundle.
        VersionMismatch: If the cloud worker has no part of the same model.
        NotAllowed: If the two sides do not believe each other.

    Example:

    ```python
    with EdgeWorker(
        "digits_cut/segment_0",
        "cloud.example.org:50051",
        ca="ca.pem",
        cert="edge.pem",
        key="edge.key",
    ) as worker:
        result = worker.predict(x)
        print(result.predictions, result.answered_by)
    ```
    """

    def __init__(
        self, bundle, target, *, thresholds=None, num_threads=None, **settings
    ):
        self.config = EdgeConfig(target, **settings)
        if not isinstance(bundle, Bundle):
            bundle = load_bundle(bundle, num_threads=num_threads)
        self.config.check_bundle(bundle.manifest)
        self._bundle = bundle.from_stage(0)
        if thresholds is not None:
            self._bundle.thresholds = thresholds
        self._cap = OffloadCap(
            self.config.offload_rows_per_s, self.config.max_offload_share
        )
        self._stats = Stats()
        self._is_degraded = False
        self._offloading = Offloading(bundle.manifest, self.config)
        try:
            self._offloading.link.connect(self.config.deadline)
        except BaseException:
            self._offloading.close()
            raise

    @property
    def bundle(self):
        """The `Bundle` that answers here."""
        return self._bundle

    @property
    def is_connected(self):
        """Whether the cloud worker answers."""
        return self._offloading.link.is_connected

    @property
    def stats(self):
        """Dict of what was counted since the start."""
        link = self._offloading.link
        return {
            **self._stats.as_dict(),
            "offload": self._offloading.kind,
            "is_connected": link.is_connected,
            "circuit": link.circuit,
            "link": link.stats,
        }

    def predict(self, x, batch_size=None):
        """Answers every sample, here or in the cloud.

        Batches that wait for the cloud worker overlap with those that run
        here, and each has the worker's deadline for itself.

        Args:
            x: As for `Bundle.predict_exits`.
            batch_size: Rows that are routed and sent together, 64 by default.

        Returns:
            A `SplitResult`, in the order of the inputs.

        Raises:
            ValueError: If `x` does not fit, or if answers come out as NaN.
            VersionMismatch: If the cloud worker has no part of the same model
                any more.
            NotAllowed: If the two sides do not believe each other any more.
        """
        size = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
        if type(size) is not int or size < 1:
            raise ValueError(
                "Expected `batch_size` to be an integer of at least 1. "
                f"Received: batch_size={batch_size!r} (of type "
                f"{type(batch_size).__name__})."
            )
        manifest = self._bundle.manifest
        specs = manifest.stages[0].inputs
        arrays = fit_inputs(x, specs, manifest.input_structure)
        call = Merging(self._bundle.relative_costs)
        waiting = collections.deque()
        count = len(arrays[0])
        for start in range(0, max(count, 1), size):
            while _is_full(waiting):
                self._collect(call, waiting.popleft())
            part = tuple(array[start : start + size] for array in arrays)
            # Nothing is left to do meanwhile once the last one is sent.
            sent = self._start(call, part, waits=start + size >= count)
            if sent is not None:
                waiting.append(sent)
        while waiting:
            self._collect(call, waiting.popleft())
        result = call.result()
        refuse_nan(result.predictions, "answers")
        self._stats.answered(result)
        return result

    def close(self):
        """Closes the connection to the cloud worker."""
        self._offloading.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _start(self, call, arrays, waits):
        """Routes a batch, sends what stays, returns what to wait for."""
        started = time.monotonic()
        routed = self._bundle.route_fitted(arrays)
        first = call.add(routed, time.monotonic() - started)
        staying = len(routed.staying)
        rows = self._cap.take(len(arrays[0]), staying) if staying else 0
        if rows < staying:
            self._stats.capped(staying - rows)
        if not rows:
            return None
        ends_at = started + self.config.deadline
        sent_at = time.monotonic()
        future = self._offloading.submit(
            arrays, routed, rows, ends_at - sent_at, waits
        )
        call.seconds["wait"] += time.monotonic() - sent_at
        return _Sent(
            first + routed.staying[:rows],
            future,
            ends_at,
            routed.feature.nbytes,
        )

    def _collect(self, call, sent):
        """Waits for the answers to some rows and puts them in their place."""
        started = time.monotonic()
        left_s = max(0.0, sent.ends_at - started)
        try:
            answers = sent.future.result(left_s + _GRACE_S)
        except (VersionMismatch, NotAllowed):
            raise
        # A ValueError: features that no codec has a form for.
        except (SplitError, ValueError, TimeoutError) as error:
            self._stats.failed(error)
            self._note(error)
        except concurrent.futures.CancelledError as error:
            self._stats.failed(error)
        else:
            self._note(None)
            call.put(sent.rows, answers)
        call.seconds["wait"] += time.monotonic() - started

    def _note(self, error):
        """Logs when answers become degraded, and when no more."""
        if (error is not None) == self._is_degraded:
            return
        self._is_degraded = error is not None
        if error is None:
            logger.info("the cloud worker answers again")
        else:
            logger.warning(
                "answers are degraded (%s): %s", type(error).__name__, error
            )


def _is_full(waiting):
    """Whether no batch more may be routed before one has its answers."""
    return len(waiting) >= _MAX_WAITING or (
        sum(sent.num_bytes for sent in waiting) >= _MAX_WAITING_BYTES
    )
