"""Applies each batch of each edge exactly once, and knows what is for good.

No connection and no clock of its own: batches go in, in whatever order they
come, and out comes what is to be told of them. A batch is applied if it is the
one that is expected of its edge; it is acknowledged once a commit holds it.
What was applied and not committed is lost with the process, and sent again.
"""

import dataclasses
import math
import time
from typing import NamedTuple

import numpy as np

from protos.errors import CloudUnavailable, Fenced, Overloaded, WireError

MAX_EDGES = 4096
#: Features beyond this are no features: the loss would soon be infinite.
MAX_FEATURE = 1e6
_RETRY_S = 1.0


@dataclasses.dataclass
class _Edge:
    """One edge: its current run, and the batches that it has had applied."""

    epoch: int
    expected: int = 0
    committed: int = 0
    poison: int | None = None


class Outcome(NamedTuple):
    """What became of a batch.

    Args:
        is_applied: Whether it was applied now; a duplicate was before.
        is_gap: Whether it comes too early.
        expected: The sequence number that is expected next of its edge.
        committed: All numbers below are committed.
        logs: What the step told, a dict; empty without a step.
    """

    is_applied: bool
    is_gap: bool
    expected: int
    committed: int
    logs: dict


class Learner:
    """Applies batches in sequence and commits. For one thread.

    Args:
        stepper: Has `step(arrays, labels, sample_weight)`, which returns a
            dict with `loss`, `state()`, a list of arrays, and
            `restore(arrays)`.
        ledger: A `Ledger`.
        agreement: Text that says what is trained; that of the ledger has to
            be the same.
        commit_every: Batches from one commit to the next.
        max_feature: Largest magnitude of a feature that is learned from.
        clock: Returns seconds that never go back.
        on_commit: Called after each commit.

    Raises:
        ValueError: If the ledger is damaged or of another model.
        OSError: If it cannot be written.
    """

    def __init__(
        self,
        stepper,
        ledger,
        agreement="",
        commit_every=20,
        max_feature=MAX_FEATURE,
        clock=time.monotonic,
        on_commit=None,
    ):
        self._stepper, self._ledger = stepper, ledger
        self._agreement = agreement
        self._commit_every = commit_every
        self._max_feature = max_feature
        self._clock, self._on_commit = clock, on_commit
        self._edges = {}
        self._pending = 0
        self._failed_at = None
        self.steps = 0
        self.refused = 0
        #: Seconds that the last commit took.
        self.commit_s = 0.0
        if ledger.read() is None:
            # Something to go back to, and a disk that is known to work.
            self._write()
        else:
            self._return_to_ledger()

    @property
    def is_healthy(self):
        """Whether the last commit went well."""
        return self._failed_at is None

    @property
    def pending(self):
        """Batches that are applied and not committed."""
        return self._pending

    def meet(self, edge_id, epoch):
        """Notes a run of an edge; from now on no older one may train.

        Args:
            edge_id: Who it is.
            epoch: Which of its runs it is; later ones have larger numbers.

        Returns:
            The sequence number that is expected next.

        Raises:
            Fenced: If a newer run is known.
            Overloaded: If there are too many edges.
            CloudUnavailable: If the ledger cannot be written.
        """
        edge = self._edges.get(edge_id)
        if edge is None and len(self._edges) >= MAX_EDGES:
            raise Overloaded(
                f"Expected at most {MAX_EDGES} edges. Received: one more. "
                "Remove those that are gone from the ledger."
            )
        if edge is not None and epoch < edge.epoch:
            raise _fenced(edge_id, epoch, edge.epoch)
        if edge is None or epoch > edge.epoch:
            before = edge and edge.epoch
            edge = self._edges.setdefault(edge_id, _Edge(epoch))
            edge.epoch = epoch
            # A fence that a restart forgets is none.
            if not self.commit():
                if before is None:
                    del self._edges[edge_id]
                else:
                    edge.epoch = before
                raise self._unavailable()
        return edge.expected

    def check_run(self, edge_id, epoch):
        """Refuses all but the newest run of an edge.

        Args:
            edge_id: Who it is.
            epoch: Which of its runs it is.

        Raises:
            Fenced: If a newer run is known, or none of it.
        """
        edge = self._edges.get(edge_id)
        if edge is None or epoch != edge.epoch:
            raise _fenced(edge_id, epoch, edge.epoch if edge else None)

    def learn(
        self, edge_id, epoch, sequence, arrays, labels, weight=None, **place
    ):
        """Applies a batch if it is the one that is expected.

        Args:
            edge_id: Whose it is.
            epoch: The run of the edge that sends it.
            sequence: Its number.
            arrays: Tuple of features.
            labels: Array of labels.
            weight: Array (batch,) or `None`.
            **place: What the stepper is told besides.

        Returns:
            An `Outcome`.

        Raises:
            Fenced: If a newer run is known, or none of it.
            WireError: If nothing can be learned from it. The state is that
                without it; batches that were not committed may be expected
                again.
            CloudUnavailable: If the last commit failed and still does.
        """
        self.check_run(edge_id, epoch)
        edge = self._edges[edge_id]
        self._recover()
        if sequence != edge.expected:
            return self._outcome(edge, is_gap=sequence > edge.expected)
        self._check(edge, sequence, arrays)
        logs = self._stepper.step(arrays, labels, weight, **place)
        if not math.isfinite(logs["loss"]):
            self.refused += 1
            self._return_to_ledger()
            self._edges[edge_id].poison = sequence
            raise _no_loss(sequence, logs["loss"])
        edge.expected += 1
        self._pending += 1
        self.steps += 1
        if self._pending >= self._commit_every:
            self.commit()
        return self._outcome(edge, logs=logs, is_applied=True)

    def commit(self):
        """Makes for good what is applied.

        Returns:
            Whether that worked. If not, nothing is acknowledged until it
            does.
        """
        try:
            self._write()
        except OSError:
            self._failed_at = self._clock()
            return False
        return True

    def committed(self, edge_id):
        """All sequence numbers below are committed; 0 for an unknown edge."""
        edge = self._edges.get(edge_id)
        return edge.committed if edge else 0

    def _recover(self):
        if self._failed_at is None:
            return
        if self._clock() - self._failed_at < _RETRY_S or not self.commit():
            raise self._unavailable()

    def _check(self, edge, sequence, arrays):
        peak = max(float(np.abs(x).max(initial=0)) for x in arrays)
        if not peak <= self._max_feature:
            self.refused += 1
            raise WireError(
                f"Expected features of at most {self._max_feature:g} in "
                f"magnitude. Received: {peak:g} in batch {sequence}. Look at "
                "the edge's model."
            )
        if edge.poison == sequence:
            self.refused += 1
            raise _no_loss(sequence, math.nan)

    def _outcome(self, edge, logs=None, is_applied=False, is_gap=False):
        return Outcome(
            is_applied, is_gap, edge.expected, edge.committed, logs or {}
        )

    def _write(self):
        facts = {
            "agreement": self._agreement,
            "steps": self.steps,
            "edges": {
                name: [edge.epoch, edge.expected]
                for name, edge in self._edges.items()
            },
        }
        started = self._clock()
        self._ledger.write(self._stepper.state(), facts)
        self.commit_s = self._clock() - started
        self._failed_at = None
        self._pending = 0
        for edge in self._edges.values():
            edge.committed = edge.expected
        if self._on_commit is not None:
            self._on_commit()

    def _return_to_ledger(self):
        arrays, facts = self._ledger.read()
        if facts["agreement"] != self._agreement:
            raise ValueError(
                "Expected a ledger of what is trained here. Received: "
                f"{self._ledger.path!r}, of another model, cut or objective. "
                "Choose another folder."
            )
        self._stepper.restore(arrays)
        poisons = {name: edge.poison for name, edge in self._edges.items()}
        self._edges = {
            name: _Edge(epoch, expected, expected, poisons.get(name))
            for name, (epoch, expected) in facts["edges"].items()
        }
        self._pending, self.steps = 0, facts["steps"]

    def _unavailable(self):
        return CloudUnavailable(
            "Expected a ledger that can be written. Received: an error of "
            f"{self._ledger.path!r}. Make room on the disk."
        )


def _fenced(edge_id, epoch, newest):
    return Fenced(
        f"Expected run {newest} of edge {edge_id!r}. Received: run {epoch}. "
        "End the older of the two."
    )


def _no_loss(sequence, loss):
    return WireError(
        f"Expected batch {sequence} to have a finite loss. Received: {loss}. "
        "Look at its features and labels, or lower the learning rate."
    )
