"""What goes up of each batch, and what the edge waits for there."""

from protos.feeding.packing import pack

_POLL_S = 0.5


class Uplink:
    """Records batches for the cloud worker, which a thread sends.

    It waits for the network only while the journal is full.

    Args:
        segment: The edge's `SegmentModel`.
        journal: The `Journal`.
        sender: The `Sender` of that.
        forwarding: A `Forwarding`.
        codec: A `Codec`.
        seed: Integer that roundings follow from.
    """

    def __init__(self, segment, journal, sender, forwarding, codec, seed):
        self._segment, self._journal = segment, journal
        self._sender, self._forwarding = sender, forwarding
        self._codec, self._seed = codec, seed
        #: Batches that were made again and are not as in the journal.
        self.differing = 0

    def record(self, outputs, labels, weight, position, ends_pass):
        """Records what goes up of a batch; waits for room.

        Args:
            outputs: What the segment gave, a dict of arrays.
            labels: Array of labels, in the form that crosses.
            weight: Array (batch,) or `None`.
            position: The `Position` of the batch.
            ends_pass: Whether the pass ends with it.

        Returns:
            How many samples go up.

        Raises:
            SplitError: If the cloud worker has refused.
        """
        feature = outputs["feature"]
        rows, weight = self._forwarding.choose(
            self._segment,
            outputs,
            weight,
            position.epoch,
            position.sequence,
        )
        if len(rows) < len(feature):
            feature, labels = feature[rows], labels[rows]
        content = pack(
            self._sender.generation,
            position.sequence,
            feature,
            labels,
            weight,
            codec=self._codec,
            seed=self._seed,
            pass_number=position.epoch,
            ends_pass=ends_pass,
        )
        self._append(position.sequence, content)
        return len(rows)

    def drain(self, sequence):
        """Waits until all batches below a number are committed.

        Args:
            sequence: The number.

        Raises:
            SplitError: If the cloud worker has refused.
        """
        while not self._journal.wait_acknowledged(sequence, _POLL_S):
            self._sender.check()

    def flush(self):
        """Waits until what was recorded is on the disk.

        Raises:
            OSError: If it fails.
        """
        self._journal.flush()

    @property
    def logs(self):
        """Dict of what the cloud worker has told, for callbacks."""
        cloud = self._sender.progress
        return {
            "cloud_loss": cloud.loss,
            "cloud_accuracy": cloud.accuracy,
            "cloud_idle_share": cloud.idle_share,
            "cloud_committed": cloud.committed,
            "bytes_up": cloud.bytes_up,
            "bytes_down": cloud.bytes_down,
            "waited_s": self._journal.waited_s,
        }

    def _append(self, sequence, content):
        following = self._journal.next_sequence
        if following is not None and sequence < following:
            before = self._journal.read(sequence)
            self.differing += before is not None and before != content
            return
        while not self._journal.append(sequence, content, _POLL_S):
            self._sender.check()
        self._sender.check()
