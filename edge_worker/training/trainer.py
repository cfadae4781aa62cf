"""Trains the earlier segment, and hands its features up to the later one.

Two things run at the same time: steps of the edge's own segment, which write
the features of each batch into a journal, and a thread that sends the journal.
Nothing comes back but numbers of batches that the cloud has for good. Training
waits for the network only while the journal is full.
"""

import contextlib
import math
import os

import keras

import keras_earlyexit as ee
from edge_worker.training.averaging import Averaging
from edge_worker.training.batches import Batches, Iterated
from edge_worker.training.checkpoint import Checkpoint
from edge_worker.training.loop import TrainingLoop
from edge_worker.training.memory import MemoryLimit
from edge_worker.training.progress import ProgressLine
from edge_worker.training.publishing import publish
from edge_worker.training.segment import first_segment
from edge_worker.training.streams import Stream
from edge_worker.training.uplink import Uplink
from protos import training
from protos.codecs import Codec
from protos.feeding.forwarding import Forwarding
from protos.feeding.journal import Journal
from protos.feeding.sending import Sender
from protos.security import ClientSecurity


class EdgeTrainer:
    """Trains the edge's segment while a cloud worker trains the next one.

    Features and labels go up; neither inputs nor gradients do. Killed at any
    moment and made again with the same arguments, it goes on where it was:
    from the last checkpoint, through the same batches.

    Args:
        model: An `EarlyExitModel`, or a `SegmentModel` that is compiled and
            not the last one.
        cut: Name of the exit that the edge's segment ends with, or a tuple of
            the names of all cuts where there are more machines; `None` for a
            `SegmentModel`, which knows it.
        target: `"host:port"` of a cloud worker that trains the next segment.
        state: Folder for checkpoint and journal.
        base: Objective of each segment, for an `EarlyExitModel`.
        optimizer: The edge's optimizer, for an `EarlyExitModel`.
        security: A `ClientSecurity`.
        edge_id: What the edge calls itself; `None` is the name in its
            certificate, or `"edge"` without one.
        forward: Which samples go up, see `Forwarding`.
        codec: Form in which features cross, the name of a `Codec`; 8-bit ones
            round at random.
        seed: Integer that orders, draws and roundings follow from.
        journal_bytes: Bytes of the journal at most.
        checkpoint_every: Batches from one checkpoint to the next; there is
            one more after each pass.
        average_every: Batches from one average of all edges' segments to the
            next, and at the end; `None` has none. The cloud worker has to be
            told to make them.
        average_patience_s: Seconds without an answer after which a round is
            left out, besides those that it may last.
        memory_limit: Bytes that this process may have in memory; `None` sets
            no bound.

    Raises:
        TypeError: If `model` is none of these.
        ValueError: If arguments are wrong, or the folder belongs to another
            training.
        OSError: If the folder cannot be used.

    Example:

    ```python
    trainer = EdgeTrainer(model, "exit_0", "cloud:50052", security=security)
    with trainer:
        history = trainer.fit(x, y, epochs=10)
    trainer.segment.save("edge.keras")
    ```
    """

    def __init__(
        self,
        model,
        cut,
        target,
        state="edge_state",
        *,
        base="eenet_v2",
        optimizer="adam",
        security=None,
        edge_id=None,
        forward="non_exited",
        codec="float32",
        seed=0,
        journal_bytes=256 << 20,
        checkpoint_every=50,
        average_every=None,
        average_patience_s=60.0,
        memory_limit=None,
    ):
        self.segment = first_segment(model, cut, base, optimizer)
        security = security or ClientSecurity()
        if edge_id is None:
            edge_id = "" if security.cert else "edge"
        self._model = model if isinstance(model, ee.EarlyExitModel) else None
        self._memory = None
        if memory_limit is not None:
            self._memory = MemoryLimit(self.segment, memory_limit)
        agreement = self.segment.agreement(self.segment.position + 1)
        forwarding = Forwarding(forward, seed)
        codec, self._seed = Codec.parse(codec), seed
        self.averaging = None
        if average_every is not None:
            self.averaging = Averaging(
                self.segment, average_every, average_patience_s
            )
        self._checkpoint = Checkpoint(
            state,
            {
                "recipe": training.digest(agreement),
                "forward": forward,
                "codec": str(codec),
                "seed": seed,
            },
        )
        with contextlib.ExitStack() as closing:
            closing.callback(self._checkpoint.close)
            self.journal = Journal(
                os.path.join(state, "journal"), journal_bytes
            )
            closing.callback(self.journal.close)
            self._sender = Sender(
                self.journal,
                target,
                security,
                agreement,
                self._checkpoint.run,
                edge_id,
                average_sha256=self.averaging.form if self.averaging else "",
            )
            self._uplink = Uplink(
                *(self.segment, self.journal, self._sender),
                *(forwarding, codec, seed),
            )
            self._loop = TrainingLoop(
                *(self.segment, self._checkpoint, self._uplink),
                *(self.averaging, self._sender),
                *(self._memory, checkpoint_every),
            )
            hello = self._sender.start()
            closing.pop_all()
        self._max_rows = hello.max_rows if hello else math.inf
        self._known = hello.expected_sequence if hello else 0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    @property
    def cloud(self):
        """What the cloud worker has told, a `CloudProgress`."""
        return self._sender.progress

    @property
    def differing(self):
        """Batches that were made again and are not as in the journal."""
        return self._uplink.differing

    def fit(
        self,
        x,
        y=None,
        sample_weight=None,
        epochs=1,
        batch_size=32,
        shuffle=True,
        augment=None,
        validation_data=None,
        callbacks=None,
        verbose="auto",
        steps=None,
        steps_per_epoch=100,
    ):
        """Trains until all batches are committed in the cloud.

        Epochs that were done before count: after `fit(epochs=10)` it takes
        `epochs=20` to train ten more. Callbacks start anew after a crash;
        weights, optimizer and random state do not.

        Args:
            x: Array of inputs; or an iterable of `(x, y)`, such as a
                `tf.data.Dataset` that gives the same batches each time, or a
                function of the epoch's number that returns one.
            y: Array of labels.
            sample_weight: Array (samples,) or `None`.
            epochs: Passes over the data, those before included.
            batch_size: Samples in a batch.
            shuffle: Whether each pass has an order of its own.
            augment: A function of a batch of inputs and a NumPy `Generator`
                that returns another one.
            validation_data: `(x, y)` for the edge's own exits.
            callbacks: Keras callbacks; their model is the edge's segment.
            verbose: 0 for silence, 1 for a line that moves, 2 for one line
                each epoch; `"auto"` is 1 on a terminal, else 2.
            steps: For a source without an end: batches in all, those before
                included; `epochs` does not count then. Each batch is taken
                once: after a crash an iterable goes on with what comes next,
                and what the edge itself has not saved of what it learned is
                lost. A function of a number of batches, which returns an
                iterable that begins behind so many, loses nothing.
            steps_per_epoch: Batches of what then counts as an epoch.

        Returns:
            A Keras `History`. Beside the segment's own figures it has
            `cloud_loss`, `cloud_accuracy`, `cloud_idle_share`,
            `cloud_committed`, `forwarded` (share of samples), `bytes_up`,
            `bytes_down` and `waited_s` (for room in the journal).

        Raises:
            ValueError: If data is wrong, the loss is not finite, or the
                journal is damaged.
            SplitError: If the cloud worker refuses.
        """
        position = self._loop.position
        if steps is None:
            batches = self._batches(
                x, y, sample_weight, batch_size, shuffle, augment
            )
        else:
            batches = self._stream(x, y, steps, steps_per_epoch, augment)
            epochs = batches.passes(position.epoch, position.index)
        if self._memory:
            self._memory.check_start(batch_size)
        history = keras.callbacks.History()
        line = ProgressLine(verbose, epochs, self)
        callbacks = keras.callbacks.CallbackList(
            [*_as_list(callbacks), line, history],
            model=self.segment,
            epochs=epochs,
            steps=len(batches) or None,
            verbose=0,
        )
        self.segment.stop_training = False
        callbacks.on_train_begin()
        try:
            while position.epoch < epochs and not self.segment.stop_training:
                self._loop.run_pass(batches, callbacks, validation_data)
            self._loop.average_if_due(at_end=True)
            self._uplink.drain(position.sequence)
        finally:
            line.close()
        callbacks.on_train_end()
        return history

    def publish(self, path, format="litert"):
        """Writes a new generation, on both sides.

        The cloud worker writes its half first; this one gets the same name
        for its weights, so that only these two answer together.

        Args:
            path: The folder of this half's bundle; the one that is there is
                taken the place of, in one step.
            format: As in `ee.export`.

        Returns:
            The name, SHA-256 in hexadecimal.

        Raises:
            ValueError: If the trainer was given no `EarlyExitModel`.
            SplitError: If the cloud worker does not write generations, or
                does not answer.
        """
        return publish(self._model, self.segment, self._sender, path, format)

    def close(self):
        """Ends the sending; what is not committed stays in the journal."""
        self._sender.close()
        self.journal.close()
        self._checkpoint.close()

    def _batches(self, x, y, weight, batch_size, shuffle, augment):
        if y is None:
            return Iterated(x, augment, self._seed)
        self.segment.head.check_labels(y)
        if batch_size > self._max_rows:
            raise ValueError(
                f"Expected batches of at most {self._max_rows} samples, which "
                f"the cloud worker takes. Received: batch_size={batch_size}. "
                "Make it smaller, or start the cloud worker with a larger "
                "max_batch."
            )
        return Batches(x, y, weight, batch_size, shuffle, augment, self._seed)

    def _stream(self, source, y, steps, window, augment):
        if y is not None:
            raise ValueError(
                "Expected a source of (x, y) with `steps`. Received: arrays. "
                "Pass an iterable of batches, or `epochs`."
            )
        # What was recorded is gone from the source, if that cannot go back.
        position = self._loop.position
        ahead = max(self.journal.next_sequence or 0, self._known)
        if not callable(source) and ahead > position.sequence:
            position.skip_to(ahead, window)
        return Stream(
            source, steps, window, position.sequence, augment, self._seed
        )


def _as_list(callbacks):
    if callbacks is None:
        return []
    return (
        list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
    )
