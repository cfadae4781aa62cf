"""Training in TensorBoard, exit by exit."""

import os

import keras
import numpy as np

from keras_earlyexit.callbacks import figures, gallery
from keras_earlyexit.callbacks.events import EventWriter


class TensorBoard(keras.callbacks.Callback):
    """Writes figures, confidences and samples of every exit for TensorBoard.

    After each epoch, in the runs `train` and `validation`:

    - `loss/...`, `accuracy/exit_0` ... `accuracy/routed`, `share/...`,
      `cost/routed` and whatever else `fit` logs, and `learning_rate`;
    - `threshold/...`, the thresholds of the early exits.

    With samples, in the run `samples`:

    - `score/...`: histograms of every early exit's score for all of them; who
      is above the threshold leaves;
    - `accuracy/...`, `share/...` and `cost/...`, measured on them;
    - `left_at/...`: images, or texts, that leave at each exit; in green frames
      those that are answered rightly, in red those that are not.

    It works on every backend, and needs the package tensorboard. Without
    samples it takes a `SegmentModel`, too, as `edge-worker train` does.

    Args:
        log_dir: Folder to write to.
        samples: Inputs to show, or `(x, y)` with their labels; a few hundred
            are plenty.
        gallery_size: How many samples to show of each exit.
        every: Samples are looked at after every so many epochs.

    Raises:
        ValueError: If a number is not positive.

    Example:

    ```python
    samples = x_val[:500], y_val[:500]
    board = ee.callbacks.TensorBoard("logs", samples)
    model.fit(x, y, validation_data=(x_val, y_val), callbacks=[board])
    ```

    Then `tensorboard --logdir logs` shows it.
    """

    def __init__(self, log_dir, samples=None, gallery_size=8, every=1):
        super().__init__()
        for name, value in (("gallery_size", gallery_size), ("every", every)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"Expected `{name}` to be an integer of at least 1. "
                    f"Received: {name}={value!r} (of type "
                    f"{type(value).__name__})."
                )
        self.log_dir = os.fspath(log_dir)
        self._x, self._y = samples, None
        if isinstance(samples, tuple) and len(samples) == 2:
            self._x, self._y = samples
        self._size, self._every = gallery_size, every
        self._pixels = None
        if gallery.is_images(self._x):
            self._pixels = gallery.as_pixels(self._x)
        self._writers = {}

    def on_epoch_end(self, epoch, logs=None):
        names = self.model.exit_names
        training, validation = figures.parted(logs)
        for run, found in (("train", training), ("validation", validation)):
            for name, value in found.items():
                self._scalar(run, figures.tag(name, names), value, epoch)
        rate = getattr(self.model.optimizer, "learning_rate", None)
        if rate is not None and "learning_rate" not in training:
            value = keras.ops.convert_to_numpy(rate)
            self._scalar("train", "learning_rate", value, epoch)
        # A segment's policy has the thresholds of the whole model.
        early = getattr(self.model, "origin", self.model).exit_names[:-1]
        thresholds = self.model.policy.thresholds(len(early))
        for name, value in zip(early, thresholds, strict=True):
            if name in names:
                self._scalar("train", f"threshold/{name}", value, epoch)
        if self._x is not None and epoch % self._every == 0:
            self._show_samples(epoch)
        for writer in self._writers.values():
            writer.flush()

    def on_train_end(self, logs=None):
        self.close()

    def close(self):
        """Closes the files; what is logged afterwards goes to new ones."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _writer(self, run):
        if run not in self._writers:
            folder = os.path.join(self.log_dir, run)
            self._writers[run] = EventWriter(folder)
        return self._writers[run]

    def _scalar(self, run, tag, value, step):
        value = np.asarray(value)
        # A threshold that nobody reaches is infinite, and has no place.
        if value.ndim == 0 and np.isfinite(value):
            self._writer(run).scalar(tag, value, step)

    def _show_samples(self, epoch):
        from keras_earlyexit.calibration import observe

        seen = observe(self.model, self._x, self._y, verbose=0)
        names = self.model.exit_names
        thresholds = self.model.policy.thresholds(len(names) - 1)
        figures_of = {f"cost/{figures.ROUTED}": seen.mean_cost(thresholds)}
        for name, share, cost in zip(
            names,
            seen.exit_shares(thresholds),
            seen.relative_costs,
            strict=True,
        ):
            figures_of |= {f"share/{name}": share, f"cost/{name}": cost}
        if seen.labels is not None:
            metric = seen.metric_name
            figures_of[f"{metric}/{figures.ROUTED}"] = seen.metric(thresholds)
            for name, value in zip(names, seen.exit_metrics(), strict=True):
                figures_of[f"{metric}/{name}"] = value
        for tag, value in figures_of.items():
            self._scalar("samples", tag, value, epoch)
        writer = self._writer("samples")
        for name, scores in zip(names, seen.scores.T, strict=False):
            writer.histogram(f"score/{name}", scores, epoch)
        taken = seen.exit_index(thresholds)
        for k, name in enumerate(names):
            rows = np.flatnonzero(taken == k)[: self._size]
            if len(rows):
                self._show(f"left_at/{name}", seen, rows, k, epoch)

    def _show(self, tag, seen, rows, exit_index, epoch):
        answers = seen.answers(exit_index)[rows]
        labels = None if seen.labels is None else seen.labels[rows]
        one_each = answers.ndim == 1 and labels is not None
        writer = self._writer("samples")
        if self._pixels is not None:
            right = answers == labels if one_each else None
            writer.image(tag, gallery.row(self._pixels[rows], right), epoch)
        elif getattr(self._x, "dtype", np.dtype("f")).kind in "OUS":
            writer.text(tag, _table(self._x[rows], answers, labels), epoch)


def _table(texts, answers, labels):
    """Texts with answers and labels as a table in Markdown."""
    lines = ["| text | answer | label |", "| --- | --- | --- |"]
    for i, text in enumerate(np.asarray(texts).ravel()):
        shown = str(text).replace("|", "\\|").replace("\n", " ")
        label = "" if labels is None else labels[i]
        lines.append(f"| {shown} | {answers[i]} | {label} |")
    return "\n".join(lines)
