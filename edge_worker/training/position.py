"""Where training is, and what its pass over the data has come to so far."""

import dataclasses


@dataclasses.dataclass
class Position:
    """The next batch, and the figures of the pass that it is in.

    All of it has to outlast the process, so that nothing shows that there was
    another one.

    Args:
        epoch: The pass, from 0 on.
        index: The batch in that pass.
        sequence: The batch among all of them.
        sums: Dict of each figure's sum over the samples of the pass.
        rows: Samples of the pass.
        sent: How many of them went up.
    """

    epoch: int = 0
    index: int = 0
    sequence: int = 0
    sums: dict = dataclasses.field(default_factory=dict)
    rows: int = 0
    sent: int = 0

    def count(self, logs, rows, sent):
        """Adds the figures of a batch.

        Args:
            logs: Dict of its figures, means over its samples.
            rows: Its samples.
            sent: How many of them went up.
        """
        for name, value in logs.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * rows
        self.rows += rows
        self.sent += sent

    @property
    def means(self):
        """Dict of the means over the samples of the pass so far."""
        rows = max(self.rows, 1)
        logs = {name: total / rows for name, total in self.sums.items()}
        return {**logs, "forwarded": self.sent / rows}

    def next_batch(self):
        """Goes on to the next batch of the pass."""
        self.index += 1
        self.sequence += 1

    def next_pass(self):
        """Goes on to the next pass."""
        self.epoch, self.index = self.epoch + 1, 0
        self.sums, self.rows, self.sent = {}, 0, 0

    def skip_to(self, sequence, window):
        """Leaves out what cannot come again.

        Args:
            sequence: The batch to go on with.
            window: Batches of a pass.
        """
        self.sequence = sequence
        self.epoch, self.index = divmod(sequence, window)
