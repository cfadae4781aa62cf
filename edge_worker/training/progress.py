"""One line that shows both sides of training."""

import sys
import time

import keras

#: Share of an epoch's time from which on a wait is worth a word.
_MUCH = 0.1


class ProgressLine(keras.callbacks.Callback):
    """Prints steps, loss and accuracy of edge and cloud, bytes and the queue.

    Args:
        verbose: As in `EdgeTrainer.fit`.
        epochs: How many there are.
        trainer: The `EdgeTrainer`.
    """

    def __init__(self, verbose, epochs, trainer):
        super().__init__()
        if verbose == "auto":
            verbose = 1 if sys.stdout.isatty() else 2
        self._verbose, self._epochs, self._trainer = verbose, epochs, trainer
        self._live, self._epoch = None, 0
        self._started, self._waited_s = time.monotonic(), 0.0
        if verbose == 1:
            from rich.live import Live

            self._live = Live(refresh_per_second=5)
            self._live.start()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._started = time.monotonic()
        self._waited_s = self._trainer.journal.waited_s

    def on_train_batch_end(self, batch, logs=None):
        if self._live is not None:
            self._live.update(self.text(batch + 1, logs))

    def on_epoch_end(self, epoch, logs=None):
        if self._verbose == 2:
            print(self.text(None, logs), flush=True)
        elif self._live is not None:
            self._live.console.print(self.text(None, logs))

    def text(self, batch, logs):
        """The line, as of now.

        Args:
            batch: Batches of this epoch so far; `None` at its end.
            logs: The edge's figures.
        """
        trainer, cloud = self._trainer, self._trainer.cloud
        steps = self.params.get("steps")
        step = "" if batch is None else f" {batch}/{steps or '?'}"
        name = trainer.segment.exit_names[-1]
        accuracy = logs.get(f"{name}_accuracy")
        edge = f"edge loss {logs['loss']:.3f}"
        if accuracy is not None:
            edge += f" {name} {accuracy:.1%}"
        queue = len(trainer.journal)
        waited_s = trainer.journal.waited_s - self._waited_s
        is_much = waited_s > _MUCH * (time.monotonic() - self._started)
        waits = "edge waits" if is_much else ""
        if cloud.idle_share > 0.5:
            waits = "cloud waits"
        state = "" if cloud.is_connected else "not connected"
        parts = [
            f"Epoch {self._epoch + 1}/{self._epochs}{step}",
            edge,
            f"cloud step {cloud.committed} loss {cloud.loss:.3f} "
            f"{cloud.accuracy:.1%}",
            f"up {cloud.bytes_up / 1e6:.1f} MB down "
            f"{cloud.bytes_down / 1e3:.1f} kB",
            f"queue {queue}",
            f"forwarded {logs.get('forwarded', 0):.0%}",
            waits,
            state,
        ]
        return " | ".join(part for part in parts if part)

    def close(self):
        """Ends the line."""
        if self._live is not None:
            self._live.stop()
