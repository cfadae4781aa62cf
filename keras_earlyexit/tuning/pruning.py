"""Stops trials that another one has left behind.

A trial is stopped after an epoch if some finished trial was, after the same
epoch, better by a margin for every mean cost that the trial can answer at: all
of its points are *dominated*. What its thresholds would be plays no part, so
trials of different objectives and policies can be compared.
"""

import dataclasses

import keras

from keras_earlyexit.calibration.observations import observe
from keras_earlyexit.tuning.judging import affordable, front_of
from keras_earlyexit.tuning.records import read_trials


@dataclasses.dataclass(frozen=True)
class Pruning:
    """When trials are stopped early.

    Args:
        margin: By how much a finished trial must be better at the same cost,
            in units of the metric: 0.05 are five points of accuracy. It should
            be above what chance does on the calibration split; the larger,
            the fewer trials are stopped.
        warmup: Epochs that every trial may have. Before batch normalisation
            has settled, figures say little.
        budget: Mean relative cost that alone is looked at, if that is what
            the search is for; `None` looks at all costs.
    """

    margin: float = 0.05
    warmup: int = 3
    budget: float | None = None

    def __post_init__(self):
        for name in ("margin", "warmup"):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(
                    f"Expected `{name}` to be a number of 0 or more. Received: "
                    f"{name}={value!r} (of type {type(value).__name__})."
                )

    def dominates(self, other, points):
        """Whether a front leaves all points of another behind.

        Args:
            other: Pairs (mean cost, worth) of the finished trial, rising.
            points: Those of the trial in question.
        """
        if self.budget is not None:
            best = affordable(points, self.budget)
            points = [] if best is None else [(self.budget, best)]
        if not points or not other:
            return False
        found = [affordable(other, cost) for cost, _ in points]
        return all(
            best is not None and best >= value + self.margin
            for best, (_, value) in zip(found, points, strict=True)
        )


class DominatedTrials(keras.callbacks.Callback):
    """Keeps the points of every epoch; stops a dominated trial.

    Costs one pass over the calibration split for every epoch.

    Args:
        pruning: `Pruning`.
        data: `(x, y)`, or a dataset of pairs, the calibration split.
        directory: Folder of the search, with the records of other trials.
        save: Called with the points by epoch after each epoch.
        epochs: Points by epoch that are known, of a trial that goes on.

    Attributes:
        epochs: Points by epoch.
        stopped_by: Name of the trial that was better, or `None`.
    """

    def __init__(self, pruning, data, directory, save, epochs=()):
        super().__init__()
        self.pruning = pruning
        self.data = data
        self.directory = directory
        self.save = save
        self.epochs = dict(epochs)
        self.stopped_by = None

    def on_epoch_end(self, epoch, logs=None):
        seen = observe(self.model, *self.data, verbose=0)
        points = tuple(front_of(seen))
        self.epochs[epoch] = points
        self.save(self.epochs)
        if epoch + 1 < self.pruning.warmup:
            return
        # Read anew: other processes finish trials too.
        for trial in read_trials(self.directory):
            if trial.status != "completed":
                continue
            if self.pruning.dominates(trial.epochs.get(epoch, ()), points):
                self.stopped_by = trial.id
                self.model.stop_training = True
                return
