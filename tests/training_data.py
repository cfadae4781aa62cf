"""Data for training in processes, which may take its time."""

import os
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
    """A function of the epoch that gives its batches, slowly if told to."""
    x, y = arrays()

    def of_epoch(number):
        order = np.random.default_rng(number).permutation(len(x))
        for rows in np.split(order, BATCHES):
            time.sleep(float(os.environ.get("SECONDS_A_BATCH", 0)))
            yield x[rows], y[rows]

    return of_epoch
