"""What is sent to the cloud worker: features, or the input itself."""

import concurrent.futures
import dataclasses
import logging
import threading
import time

from edge_worker.config import AUTO, FEATURES, INPUT
from protos.calling import Link
from protos.errors import NotAllowed, VersionMismatch
from protos.tensors import encode

logger = logging.getLogger("edge_worker")
#: Rows whose size is measured to choose.
_MEASURED_ROWS = 8


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is sent, and how many bytes a sample of each kind had."""

    kind: str
    feature_bytes: float
    input_bytes: float


class Offloading:
    """Sends samples that stay, in the form that was chosen.

    Args:
        manifest: The `Manifest` of the bundle here.
        config: An `EdgeConfig`.
    """

    def __init__(self, manifest, config):
        self._manifest = manifest
        self._config = config
        self._security = config.security
        self._lock = threading.Lock()
        self._kind = INPUT if config.offload == INPUT else FEATURES
        self._links = {self._kind: self._make_link(self._kind)}
        self._measures = config.offload == AUTO and config.allow_raw_input
        self.choice = None

    @property
    def link(self):
        """The `Link` in use."""
        return self._links[self._kind]

    @property
    def kind(self):
        """`"features"` or `"input"`."""
        return self._kind

    def submit(self, arrays, routed, rows, deadline_s, waits=False):
        """Sends some of the samples that stay.

        Args:
            arrays: The inputs of the batch, a tuple.
            routed: What became of it, a `Routed`.
            rows: How many of the samples in `routed.staying` to send.
            deadline_s: Seconds until nobody waits for the answers.
            waits: Whether to wait for them here, which another thread costs
                time to do.

        Returns:
            A future of `Answers`; it is done if this has waited.
        """
        started = time.monotonic()
        features = {"feature": routed.feature[:rows]}
        if routed.carry is not None:
            features["carry"] = routed.carry[:rows]
        staying = routed.staying[:rows]
        specs = self._manifest.stages[0].inputs
        with self._lock:
            if self._measures or self._kind == INPUT:
                inputs = {
                    spec.name: array[staying]
                    for spec, array in zip(specs, arrays, strict=True)
                }
            # Where the worker is gone, nobody waits to hear it once more.
            if self._measures and self.link.is_connected:
                self._choose(features, inputs, deadline_s / 2)
            link, sent = self.link, features
            if self._kind == INPUT:
                sent = inputs
            goes_back = self._kind == INPUT and self._config.offload == AUTO
        ends_at = started + deadline_s
        ask = _ask if waits else Link.submit
        future = ask(link, sent, ends_at - time.monotonic())
        if not goes_back:
            return future
        outcome = concurrent.futures.Future()
        future.add_done_callback(
            lambda future: self._go_back(future, features, ends_at, outcome)
        )
        return outcome

    def close(self):
        """Closes the links."""
        for link in self._links.values():
            link.close()

    def _choose(self, features, inputs, timeout_s):
        """Changes over to inputs where they are smaller and are taken."""
        try:
            found = [self._size(arrays) for arrays in (features, inputs)]
        except ValueError:
            # No codec has a form for them, which sending them will say.
            return
        self.choice = Choice(FEATURES, *found)
        if found[1] >= found[0]:
            self._measures = False
            return
        link = self._make_link(INPUT)
        try:
            taken = link.connect(timeout_s)
        except (NotAllowed, VersionMismatch) as error:
            logger.info("inputs would be smaller and are not taken: %s", error)
            self._measures = taken = False
        if not taken:
            link.close()
            return
        self._measures = False
        self.choice = dataclasses.replace(self.choice, kind=INPUT)
        # The other one stays: somebody may wait for answers on it.
        self._links[INPUT], self._kind = link, INPUT

    def _go_back(self, future, features, ends_at, outcome):
        """Sends features after all where inputs are not taken any more.

        From then on it is features: a worker that was started anew without
        raw input means it.
        """
        error, left = future.exception(), None
        with self._lock:
            is_refused = isinstance(error, (NotAllowed, VersionMismatch))
            if is_refused and self._kind == INPUT:
                logger.warning("inputs are not taken any more: %s", error)
                self._kind = FEATURES
                self.choice = dataclasses.replace(self.choice, kind=FEATURES)
                left = self._links.pop(INPUT)
            # Another call may have found out first, and closed the link.
            sends = error is not None and self._kind == FEATURES
            link = self._links[FEATURES]
        if left is not None:
            # Which waits for the thread that this runs in.
            threading.Thread(target=left.close, daemon=True).start()
        if sends:
            future = link.submit(features, ends_at - time.monotonic())
        future.add_done_callback(lambda future: _copy(future, outcome))

    def _size(self, arrays):
        """Bytes that a sample has on the wire."""
        return sum(
            encode(array[:_MEASURED_ROWS], self._config.codec).ByteSize()
            / len(array[:_MEASURED_ROWS])
            for array in arrays.values()
        )

    def _make_link(self, kind):
        return Link.of(
            self._manifest,
            self._config.target,
            self._security,
            first_stage=0 if kind == INPUT else None,
            **self._config.link_options,
        )


def _ask(link, arrays, deadline_s):
    """As `Link.submit`, in this thread."""
    future = concurrent.futures.Future()
    try:
        future.set_result(link.infer(arrays, deadline_s))
    except Exception as error:
        future.set_exception(error)
    return future


def _copy(future, outcome):
    error = future.exception()
    if error is not None:
        outcome.set_exception(error)
    else:
        outcome.set_result(future.result())
