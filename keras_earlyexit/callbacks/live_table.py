"""A table of the exits that changes while training goes on."""

import datetime
import sys
import time

import keras

from keras_earlyexit.callbacks import figures


class LiveTable(keras.callbacks.Callback):
    """Shows accuracy, share and cost of every exit, loss and time left.

    In a terminal that is a table that changes in place. Elsewhere, in a
    notebook, a file or a pipe, it is a plain line after each epoch, since
    what moves the cursor makes a mess there. `EarlyExitModel.fit` leaves its
    own progress bar out.

    Shares and cost are measured on the validation data, so pass some.

    Args:
        console: A `rich.console.Console` to print to; `None`: a new one for
            standard output.
        live: Whether to change the table in place; `None`: in terminals only.

    Example:

    ```python
    table = ee.callbacks.LiveTable()
    model.fit(x, y, epochs=20, validation_split=0.1, callbacks=[table])
    ```
    """

    #: `fit` looks for it: there is no room for two.
    replaces_progress_bar = True

    def __init__(self, console=None, live=None):
        super().__init__()
        from rich.console import Console

        self._console = console or Console()
        if live is None:
            # In notebooks rich would draw each state below the last one.
            live = self._console.is_terminal and not in_notebook()
        self._is_live, self._live = live, None
        self._first = self._epoch = self._step = self._steps_done = 0
        self._logs, self._validation = {}, {}
        self._started = time.monotonic()

    def on_train_begin(self, logs=None):
        self._started, self._steps_done = time.monotonic(), 0
        self._logs, self._validation = {}, {}
        if self._is_live:
            from rich.live import Live

            self._live = Live(
                get_renderable=self.table,
                console=self._console,
                refresh_per_second=4,
            )
            self._live.start()

    def on_epoch_begin(self, epoch, logs=None):
        self._first = epoch if not self._steps_done else self._first
        self._epoch, self._step = epoch, 0

    def on_train_batch_end(self, batch, logs=None):
        self._steps_done += batch + 1 - self._step
        self._step = batch + 1
        self._logs = logs or {}

    def on_epoch_end(self, epoch, logs=None):
        self._logs, validation = figures.parted(logs)
        self._validation = validation or self._validation
        if self._live is None:
            # Not by rich, which makes a picture of a line in a notebook.
            print(self.line(), file=self._console.file, flush=True)

    def on_train_end(self, logs=None):
        self.close()

    def close(self):
        """Ends the table and gives the terminal back; `fit` always does it."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def table(self):
        """The state of training as a `rich.table.Table`."""
        from rich.table import Table

        metric, names = self._metric()
        table = Table(
            title=" · ".join(self._progress()),
            title_justify="left",
            caption=f"{(metric or '').replace('_', ' ')}  {self._losses()}",
            caption_justify="left",
        )
        for column in ("exit", "training", "validation", "share", "cost"):
            justify = "left" if column == "exit" else "right"
            table.add_column(column, justify=justify)
        costs = [*self.model.relative_costs, self._validation.get("mean_cost")]
        for name, cost in zip((*names, figures.ROUTED), costs, strict=True):
            key = f"{name}_{metric}"
            table.add_row(
                name,
                _shown(self._logs.get(key), metric),
                _shown(self._validation.get(key), metric),
                _shown(self._validation.get(f"{name}_share"), "share"),
                "" if cost is None else f"{float(cost):.3f}",
                style="bold" if name == figures.ROUTED else None,
            )
        return table

    def line(self):
        """The state of training as a line of text."""
        metric, names = self._metric()
        parts = [*self._progress(), self._losses()]
        for title, logs in (
            ("train", self._logs),
            ("validation", self._validation),
        ):
            found = [
                f"{name} {_shown(logs[key], metric)}"
                for name in (*names, figures.ROUTED)
                if (key := f"{name}_{metric}") in logs
            ]
            if found:
                parts.append(f"{title} {' '.join(found)}")
        if "mean_cost" in self._validation:
            shares = [
                _shown(self._validation[f"{name}_share"], "share")
                for name in names
            ]
            parts.append(f"cost {self._validation['mean_cost']:.3f}")
            parts.append(f"shares {' '.join(shares)}")
        return " | ".join(part for part in parts if part)

    def _metric(self):
        names = self.model.exit_names
        return figures.metric_name(self._logs, names), names

    def _progress(self):
        epochs, steps = self.params.get("epochs"), self.params.get("steps")
        parts = [f"epoch {self._epoch + 1}/{epochs}"]
        if self._live is not None:
            parts.append(f"step {self._step}/{steps or '?'}")
        now = time.monotonic() - self._started
        parts.append(f"{_clock(now)} gone")
        if steps and self._steps_done:
            left = (epochs - self._first) * steps - self._steps_done
            if left > 0:
                parts.append(f"{_clock(now * left / self._steps_done)} left")
        return parts

    def _losses(self):
        losses = [("loss", self._logs), ("validation", self._validation)]
        return "  ".join(
            f"{title} {float(logs['loss']):.4f}"
            for title, logs in losses
            if "loss" in logs
        )


def in_notebook():
    """Whether this is a notebook, where output cannot be taken back."""
    if "IPython" not in sys.modules:
        return False
    shell = sys.modules["IPython"].get_ipython()
    return hasattr(shell, "kernel")


def _shown(value, metric):
    if value is None:
        return ""
    if metric in ("accuracy", "share"):
        return f"{float(value):.1%}"
    return f"{float(value):.4g}"


def _clock(seconds):
    text = str(datetime.timedelta(seconds=round(seconds)))
    return text.removeprefix("0:")
