"""Batches from a source without an end, each of them seen once."""

import math

import numpy as np

from edge_worker.training.batches import augmented


class Stream:
    """The next batches of a source, in windows that stand for passes.

    Args:
        source: An iterable of `(x, y)` or `(x, y, sample_weight)`, which goes
            on with what comes next; or a function of a number of batches that
            returns an iterable which begins behind so many of them.
        steps: Batches in all, those before included.
        window: Batches of a pass.
        done: Batches that were taken before.
        augment: As in `Batches`.
        seed: As in `Batches`.

    Raises:
        ValueError: If a number of batches is not positive.
    """

    def __init__(self, source, steps, window=100, done=0, augment=None, seed=0):
        for name, value in (("steps", steps), ("steps_per_epoch", window)):
            if type(value) is not int or value < 1:
                raise ValueError(
                    f"Expected {name} to be a number of batches, 1 or more. "
                    f"Received: {value!r} (of type {type(value).__name__})."
                )
        self._source, self._steps, self._window = source, steps, window
        self._done = done
        self._augment, self._seed = augment, seed
        self._batches = None

    def __len__(self):
        return self._window

    def passes(self, number, start):
        """How many passes there are, if `start` batches of one are done."""
        left = max(self._steps - self._done, 0)
        return number + math.ceil((start + left) / self._window)

    def of_pass(self, number, start=0):
        """As `Batches.of_pass`, of what comes next.

        Raises:
            ValueError: If the source has ended.
        """
        if self._batches is None:
            found = self._source
            if callable(found):
                found = found(self._done)
            self._batches = iter(found)
        count = min(self._window - start, self._steps - self._done)
        for index in range(start, start + count):
            batch = next(self._batches, None)
            if batch is None:
                raise ValueError(
                    f"Expected a source of {self._steps} batches. Received: "
                    f"one that has ended after {self._done}. What was trained "
                    "is kept: go on with fewer steps, or with more data."
                )
            self._done += 1
            x, y, *weight = (np.asarray(part) for part in batch)
            yield (
                augmented(self._augment, x, self._seed, number, index),
                y,
                weight[0] if weight else None,
            )
