"""The edge's own steps, pass after pass, from checkpoint to checkpoint."""

import dataclasses
import math

from edge_worker.training.batches import labels_of
from edge_worker.training.position import Position
from keras_earlyexit import snapshots


class TrainingLoop:
    """Trains a segment; begins where the last checkpoint is.

    Args:
        segment: The compiled `SegmentModel`.
        checkpoint: The `Checkpoint`.
        uplink: The `Uplink`.
        averaging: An `Averaging`, or `None`.
        sender: The `Sender` that it asks through.
        memory: A `MemoryLimit`, or `None`.
        checkpoint_every: Batches from one checkpoint to the next; there is
            one more after each pass.

    Raises:
        ValueError: If the checkpoint is of another model.
        OSError: If it cannot be written.
    """

    def __init__(
        self,
        segment,
        checkpoint,
        uplink,
        averaging,
        sender,
        memory,
        checkpoint_every,
    ):
        self._segment, self._checkpoint = segment, checkpoint
        self._uplink, self._sender = uplink, sender
        self._averaging, self._memory = averaging, memory
        self._checkpoint_every = checkpoint_every
        self.position = Position()
        self._restore()

    def run_pass(self, batches, callbacks, validation_data=None):
        """Trains for what is left of a pass.

        Args:
            batches: Has `of_pass(epoch, start)`, see `Batches`.
            callbacks: A Keras `CallbackList`.
            validation_data: `(x, y)`, or `None`.
        """
        position, epoch = self.position, self.position.epoch
        callbacks.on_epoch_begin(epoch)
        found = batches.of_pass(epoch, position.index)
        # One ahead: the last batch of a pass says that it is.
        following = next(found, None)
        while following is not None:
            self.average_if_due()
            batch, following = following, next(found, None)
            index = position.index
            callbacks.on_train_batch_begin(index)
            self.step(*batch, ends_pass=following is None)
            position.next_batch()
            is_due = position.sequence % self._checkpoint_every == 0
            if is_due and following is not None:
                self._save()
            callbacks.on_train_batch_end(index, position.means)
        logs = position.means
        if validation_data is not None:
            figures = self._segment.evaluate(
                *validation_data, verbose=0, return_dict=True
            )
            logs.update({f"val_{k}": v for k, v in figures.items()})
        position.next_pass()
        self._save()
        callbacks.on_epoch_end(epoch, {**logs, **self._uplink.logs})

    def step(self, x, y, weight, ends_pass):
        """Learns from a batch, and records what goes up of it.

        Args:
            x: Array of inputs.
            y: Array of labels.
            weight: Array (batch,) or `None`.
            ends_pass: Whether the pass ends with it.

        Raises:
            ValueError: If its loss is not finite.
        """
        position = self.position
        learned = self._segment.learn(x, y, weight)
        if not math.isfinite(learned.logs["loss"]):
            raise ValueError(
                f"Expected a finite loss. Received: {learned.logs['loss']} in "
                f"batch {position.sequence}. Lower the learning rate, or look "
                "at the data."
            )
        labels = labels_of(y, self._segment.head)
        sent = self._uplink.record(
            learned.outputs, labels, weight, position, ends_pass
        )
        position.count(learned.logs, len(labels), sent)
        if self._memory:
            self._memory.check()
        if self._averaging:
            self._averaging.learned(len(labels))

    def average_if_due(self, at_end=False):
        """Takes part in a round of averaging, if it is time for one.

        Args:
            at_end: Whether there are no more batches.
        """
        averaging, sequence = self._averaging, self.position.sequence
        if averaging and averaging.is_due(sequence, at_end):
            # What was offered must not be made a second time, differently.
            self._save()
            averaging.run(sequence, self._sender)
            self._save()

    def _save(self):
        self._uplink.flush()
        averaging = self._averaging
        self._checkpoint.write(
            snapshots.state_of(self._segment),
            {
                **dataclasses.asdict(self.position),
                "averaging": averaging and averaging.state,
            },
        )

    def _restore(self):
        found = self._checkpoint.read()
        if found is None:
            # Where a run starts from must not depend on what made the model.
            self._save()
            return
        arrays, progress = found
        snapshots.restore(self._segment, arrays)
        progress = dict(progress)
        averaging = progress.pop("averaging", None)
        self.position = Position(**progress)
        if self._averaging:
            self._averaging.restore(averaging)
