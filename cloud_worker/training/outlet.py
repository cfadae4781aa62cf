"""What a worker in the middle sends on: the features of its own last exit.

A batch that was learned from here and is not committed may be learned from
again, in another order. So its record goes to the further worker only once a
commit holds it: it stands in the ledger, together with the state that it comes
from, before it gets into the journal. Each sample's features are then learned
from there exactly once too.
"""

import os

import numpy as np

from keras_earlyexit import snapshots
from protos import training
from protos.codecs import Codec
from protos.errors import CloudUnavailable, SplitError
from protos.feeding.forwarding import Forwarding
from protos.feeding.journal import Journal
from protos.feeding.packing import pack
from protos.feeding.sending import Sender

NAME = "outlet"


class Outlet:
    """Records for a further worker, and what sends them.

    For one thread, but for what the sender does in its own.

    Args:
        segment: A `SegmentModel` that is not the last one.
        target: `"host:port"` of the further worker.
        folder: Where the journal is.
        security: A `ClientSecurity`.
        edge_id: What this worker calls itself there; empty with a
            certificate.
        forward: Which samples go on, see `Forwarding`.
        codec: Form in which features cross, the name of a `Codec`.
        seed: Integer that draws and roundings follow from.
        journal_bytes: Bytes of the journal at most.

    Raises:
        ValueError: If `forward` or `codec` is unknown.
    """

    def __init__(
        self,
        segment,
        target,
        folder,
        security,
        *,
        edge_id="cloud-worker",
        forward="non_exited",
        codec="float32",
        seed=0,
        journal_bytes=256 << 20,
    ):
        self._segment, self._seed = segment, seed
        self._target, self._folder = target, folder
        self._security, self._edge_id = security, edge_id
        self._forwarding = Forwarding(forward, seed)
        self._codec = Codec.parse(codec)
        self._journal_bytes = journal_bytes
        # Records that no commit holds yet, and those that wait for room.
        self._uncommitted, self._committed = [], []
        self._next = 0
        self._journal = self._sender = None

    def open(self):
        """Opens the journal and says hello; for who has the folder alone.

        Raises:
            ValueError: If the journal is damaged or of another training.
            OSError: If the folder cannot be used.
            SplitError: If the further worker refuses.
        """
        agreement = self._segment.agreement(self._segment.position + 1)
        run = _count_run(self._folder, training.digest(agreement))
        self._journal = Journal(
            os.path.join(self._folder, "journal"), self._journal_bytes
        )
        self._sender = Sender(
            self._journal,
            self._target,
            self._security,
            agreement,
            run,
            self._edge_id,
        )
        try:
            self._sender.start()
        except BaseException:
            self.close(0.0)
            raise

    @property
    def progress(self):
        """What the further worker has told, a `CloudProgress`."""
        return self._sender.progress

    @property
    def left(self):
        """Batches that the further worker has not committed."""
        return len(self._journal) + len(self._committed)

    def add(self, outputs, labels, weight, pass_number=0, ends_pass=False):
        """Makes the record of a batch.

        Args:
            outputs: What the segment gave, a dict of arrays.
            labels: Array of labels.
            weight: Array (batch,) or `None`.
            pass_number: Which pass over its data the edge is in.
            ends_pass: Whether that ends here.
        """
        rows, weight = self._forwarding.choose(
            self._segment, outputs, weight, pass_number, self._next
        )
        record = pack(
            self._sender.generation,
            self._next,
            outputs["feature"][rows],
            labels[rows],
            weight,
            codec=self._codec,
            seed=self._seed,
            pass_number=pass_number,
            ends_pass=ends_pass,
        )
        self._uncommitted.append(record)
        self._next += 1

    def state(self):
        """What a commit has to hold, a list of arrays.

        Raises:
            OSError: If the journal cannot be flushed to the disk.
        """
        # What has come there is held by no commit any more.
        self._journal.flush()
        records = [*self._committed, *self._uncommitted]
        return [
            np.array(self._next, "int64"),
            *(np.frombuffer(record, "uint8") for record in records),
        ]

    def restore(self, arrays):
        """Goes back to a `state`.

        Raises:
            ValueError: If it is none.
        """
        if not arrays or arrays[0].shape or arrays[0].dtype != "int64":
            raise ValueError(
                "Expected the ledger of a worker with a further one above it. "
                "Received: another. Start it as it was, or with an empty "
                "folder."
            )
        self._next = int(arrays[0])
        self._committed = [array.tobytes() for array in arrays[1:]]
        self._uncommitted = []

    def committed(self):
        """Sends what a commit holds now."""
        self._committed += self._uncommitted
        self._uncommitted = []
        self.flush()

    def flush(self):
        """Moves what is committed into the journal.

        Returns:
            Whether there was room for all of it.
        """
        first = self._next - len(self._uncommitted) - len(self._committed)
        while self._committed:
            following = self._journal.next_sequence
            is_there = following is not None and first < following
            if not (
                is_there
                or self._journal.append(first, self._committed[0], timeout_s=0)
            ):
                return False
            self._committed.pop(0)
            first += 1
        return True

    def is_ready(self):
        """Whether there is room for what comes next.

        Raises:
            CloudUnavailable: If the further worker has refused.
        """
        try:
            self._sender.check()
        except SplitError as error:
            raise CloudUnavailable(
                f"Expected a further worker that goes on. Received: {error}"
            ) from error
        return self.flush()

    def close(self, timeout_s):
        """Waits until the further worker has everything, and ends.

        Args:
            timeout_s: Seconds to wait at most; the rest is sent by the next
                start.
        """
        if self._sender is None:
            return
        if self._sender.error is None and timeout_s and len(self._journal):
            last = self._journal.next_sequence
            self._journal.wait_acknowledged(last, timeout_s)
        self._sender.close()
        self._journal.close()


def _count_run(folder, agreement):
    """The number of this start, for good before anybody is told of it."""
    path = os.path.join(folder, NAME)
    os.makedirs(folder, exist_ok=True)
    run = 0
    if os.path.exists(path):
        _, facts = snapshots.read(path)
        if facts["agreement"] != agreement:
            raise ValueError(
                "Expected a folder of what is trained here. Received: "
                f"{os.fspath(folder)!r}, of another model, cut or objective. "
                "Choose another folder."
            )
        run = facts["run"]
    snapshots.write(path, [], {"agreement": agreement, "run": run + 1})
    return run + 1
