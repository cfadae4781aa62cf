"""How much the ends of a beginning can be worth at most.

Samples in groups, each with thresholds of its own, are worth at least as much
as all of them with the same thresholds. So, with R the samples that reach an
exit and the groups made of those with similar scores there,

    best end of R <= best first threshold, then for each group its best end

and the best end of a group is found exactly where at most two exits follow, by
the same step again where more do, and is at last bounded by each sample at the
exit that is best for it alone. Groups are few, so that they can profit little
from the chance that is in single samples.
"""

import numpy as np

#: Groups that the samples at an exit are divided into.
GROUPS = 6
#: How often groups are divided again.
_DEPTH = 2


class EndBounds:
    """Bounds in value - rate * cost, as sums over samples.

    Args:
        problem: A `problem.Problem`.
        costing: A `problem.Costing`.
        rate: What a unit of cost is worth.
        bins: Integer array (n, C); a sample leaves at level l of a candidate
            if its bin is above l.
        sizes: How many levels each candidate has.
    """

    def __init__(self, problem, costing, rate, bins, sizes):
        self._values, self._places = problem.values, problem.places
        self._costing, self._rate = costing, rate
        self._bins, self._sizes = bins, sizes
        self.alone = self._best_alone()

    def _best_alone(self):
        """The best that each sample can get behind each candidate: (n, C)."""
        found = np.empty(self._bins.shape)
        for i in range(found.shape[1]):
            best = self._values[:, -1] - self._to_final(i)
            for j in self._behind(i):
                best = np.maximum(best, self._values[:, j] - self._step(i, j))
            found[:, i] = best
        return found

    def of_levels(self, inside, i, room, hopeful):
        """Bounds for those that stay at each level of a candidate.

        Args:
            inside: Integer array (m,), the samples that reach it.
            i: Number of the candidate.
            room: How many exits may follow it.
            hopeful: Function of such bounds that says for which levels better
                ones are of use.

        Returns:
            Array (levels,).
        """
        bins, size = self._bins[inside, i], self._sizes[i]
        alone = self.alone[inside, i]
        simple = np.cumsum(np.bincount(bins, alone, size + 1))[:size]
        if not len(inside) or not hopeful(simple).any():
            return simple
        return self._grouped(inside, i, room, 1, simple)

    def _grouped(self, inside, i, room, depth, simple):
        """For each level the groups below it, and single samples between."""
        bins, size = self._bins[inside, i], self._sizes[i]
        edges = np.unique(
            np.quantile(
                bins, np.linspace(0, 1, GROUPS + 1)[1:-1], method="lower"
            )
        )
        edges = edges[edges < size]
        found = simple.copy()
        saved, start = 0.0, -1
        for edge in edges:
            group = inside[(bins > start) & (bins <= edge)]
            alone = self.alone[group, i].sum()
            saved += alone - min(alone, self._end(group, i, room, depth))
            # From this level on the whole group stays.
            found[edge:] = simple[edge:] - saved
            start = edge
        return found

    def _end(self, inside, i, room, depth):
        """What samples are worth at most from candidate i on."""
        alone = self.alone[inside, i].sum()
        if not len(inside) or (room > 2 and depth >= _DEPTH):
            return alone
        best = self._values[inside, -1].sum() - len(inside) * self._to_final(i)
        for j in self._behind(i) if room else ():
            best = max(best, self._from(inside, int(i), int(j), room, depth))
            if best >= alone:
                return alone
        return best

    def _from(self, inside, i, j, room, depth):
        """The same if j is the next exit."""
        bins, size = self._bins[inside, j], self._sizes[j]
        gained = np.cumsum(np.bincount(bins, self._values[inside, j], size + 1))
        leaving = gained[-1] - gained[:size]
        staying = np.cumsum(np.bincount(bins, minlength=size + 1))[:size]
        final = np.bincount(bins, self._values[inside, -1], size + 1)
        ends = np.cumsum(final)[:size] - staying * self._to_final(j)
        start = -len(inside) * self._step(i, j)
        best = (leaving + ends).max()
        if room == 2:
            for k in self._behind(j):
                best = max(best, self._pair(inside, j, k, leaving, staying))
        elif room > 2:
            simple = np.cumsum(
                np.bincount(bins, self.alone[inside, j], size + 1)
            )[:size]
            ends = self._grouped(inside, j, room - 1, depth + 1, simple)
            best = max(best, (leaving + ends).max())
        return start + best

    def _pair(self, inside, j, k, leaving, staying):
        """The best of all pairs of levels of two exits."""
        rows, columns = self._sizes[j] + 1, self._sizes[k] + 1
        bins = self._bins[inside, j]
        at_k = np.cumsum(np.bincount(bins, self._values[inside, k], rows))[:-1]
        change = self._values[inside, -1] - self._values[inside, k]
        rest = self._costing.final - self._costing.prefix[k]
        changed = np.bincount(
            bins * columns + self._bins[inside, k],
            change - self._rate * rest,
            rows * columns,
        ).reshape(rows, columns)[:-1, :-1]
        best = changed.cumsum(axis=0).cumsum(axis=1).max(axis=1)
        return (leaving + at_k - staying * self._step(j, k) + best).max()

    def _behind(self, i):
        return np.flatnonzero(self._places > self._places[i])

    def _step(self, i, j):
        """What it costs a sample to go on from i to j, block included."""
        costing = self._costing
        cost = costing.prefix[j] - costing.prefix[i] + costing.blocks[j]
        return self._rate * cost

    def _to_final(self, i):
        return self._rate * (self._costing.final - self._costing.prefix[i])
