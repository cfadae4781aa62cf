"""The front of points that come in blocks, each with a row of integers."""

import numpy as np

from keras_earlyexit.tuning.front import pareto_front


class RunningFront:
    """The Pareto front of all points so far.

    Args:
        width: How many integers say what a point is.
    """

    def __init__(self, width):
        self.costs = np.empty(0)
        self.values = np.empty(0)
        self.keys = np.empty((0, width), "int64")

    def add(self, costs, values, keys_of):
        """Takes points in.

        Args:
            costs: Array (m,).
            values: Array (m,).
            keys_of: Function from rows to their keys, an array (rows, width):
                few points get as far as to need one.
        """
        rows = np.flatnonzero(values > self.best_at(costs))
        if not len(rows):
            return
        rows = rows[pareto_front(costs[rows], values[rows])]
        costs = np.concatenate([self.costs, costs[rows]])
        values = np.concatenate([self.values, values[rows]])
        keys = np.concatenate([self.keys, keys_of(rows)])
        kept = pareto_front(costs, values)
        self.costs, self.values = costs[kept], values[kept]
        self.keys = keys[kept]

    def best_at(self, costs):
        """The best value that costs no more, `-inf` if there is none."""
        if not len(self.costs):
            return np.full(np.shape(costs), -np.inf)
        found = np.searchsorted(self.costs, costs, side="right")
        return np.append(-np.inf, self.values)[found]
