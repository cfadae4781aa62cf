"""Data for training in processes, of which a test may hold back a part."""

import os
import pathlib
import time

import numpy as np

BATCHES = 10


def arrays(rows=200):
    """Inputs of which the class can be seen, and labels."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, rows)
    x = rng.normal(size=(rows, 8)) + 2 * np.eye(3, 8)[y]
    return x.astype("float32"), y


def batches():
    """A function of the epoch that gives its batches, as many as may come.

    How many batches of all epochs may come stands in the file that the
    environment's `BATCHES_FILE` names; without it all of them may. Each takes
    `SECONDS_A_BATCH`, if that is set.
    """
    return _batches_of(slice(None))


def batches_1():
    """The batches of the first of two edges."""
    return _batches_of(slice(0, None, 2))


def batches_2():
    """The batches of the second of two edges."""
    return _batches_of(slice(1, None, 2))


def _batches_of(rows):
    x, y = (array[rows] for array in arrays())

    def of_epoch(number):
        order = np.random.default_rng(number).permutation(len(x))
        for index, chosen in enumerate(np.split(order, BATCHES)):
            _wait_for(number * BATCHES + index)
            yield x[chosen], y[chosen]

    return of_epoch


def _wait_for(number):
    path = os.environ.get("BATCHES_FILE")
    while path and int(pathlib.Path(path).read_text() or 0) <= number:
        time.sleep(0.02)
    time.sleep(float(os.environ.get("SECONDS_A_BATCH", 0)))
