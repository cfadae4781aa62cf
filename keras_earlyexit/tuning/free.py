"""A threshold for each exit: branch and bound, with a gap that is proven.

Which samples reach an exit depends on all thresholds in front of it, so that
dynamic programming over exits is not exact. A node is a beginning: the first
exits with their thresholds, and the samples that pass them. Two ideas carry
the search.

- The last two exits of a configuration are evaluated for all pairs of
  thresholds at once, from one histogram of the samples over both scores.
- A beginning needs no look if even a bound on its best end (see `bounds`) is no
  better than what is known; all thresholds of its next exit are judged
  together.

With a limit on the cost, value <= bound + rate * limit for every rate of at
least 0, so what is not looked at when time is up says how much better than the
best that was found anything can be.
"""

import dataclasses
import heapq
import itertools
import time

import numpy as np

from keras_earlyexit.tuning.bounds import EndBounds
from keras_earlyexit.tuning.problem import Configuration, evaluate

# Bounds and values are sums in another order: below it they are the same.
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Goal:
    """What is looked for: the best value at a cost, or the least cost.

    Args:
        max_cost: The mean cost that is allowed; `None`: any.
        min_value: The mean value that is asked for; `None`: any. If it is
            given the cost is to be least.
        rate: What a unit of cost is worth in bounds, at least 0.
    """

    max_cost: float | None = None
    min_value: float | None = None
    rate: float = 0.0

    def meets(self, costs, values):
        """Which points keep to the limits."""
        fits = np.ones(np.shape(costs), bool)
        if self.max_cost is not None:
            fits &= costs <= self.max_cost * (1 + _ROUNDING)
        if self.min_value is not None:
            fits &= values >= self.min_value - _ROUNDING
        return fits

    def worth(self, costs, values):
        """What is to be largest."""
        return values if self.min_value is None else -costs

    def bound(self, scalarised):
        """What `worth` is at most where value - rate * cost is at most this."""
        if self.min_value is None:
            return scalarised + self.rate * self.max_cost
        return (scalarised - self.min_value) / self.rate


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search with free thresholds came to.

    Args:
        best: The best `Configuration` that keeps to the goal, or `None`.
        worth: What it is worth, of which more is better; `-inf` for `None`.
        gap: How much better anything can be, in units of what is looked for;
            0 if `best` is proven to be the best.
        evaluated: How many configurations were evaluated.
        nodes: How many beginnings were looked at.
        pruned: How many beginnings were proven not to matter.
    """

    best: Configuration | None
    worth: float
    gap: float
    evaluated: int
    nodes: int
    pruned: int


class Search:
    """A search for one way to run the network and one goal.

    Args:
        problem: A `problem.Problem`.
        levels: A list of C arrays, thresholds of each candidate, rising.
        goal: A `Goal`.
        max_exits: How many candidates may be chosen.
        costing: Number of the `Costing`.
        front: A `RunningFront` of width 1 + 2 C that gets every point: the
            costing, and for each candidate whether it is chosen and which of
            its levels it has.
    """

    def __init__(self, problem, levels, goal, max_exits, costing, front=None):
        self._problem, self._levels, self._goal = problem, levels, goal
        self._max_exits = max_exits
        self._costing_number = costing
        self._costing = problem.costings[costing]
        self._front = front
        self._known = self._best = None
        self._best_worth = -np.inf
        self.evaluated = self.nodes = self.pruned = 0
        # A sample leaves at level l if its bin is above l.
        self._bins = np.stack(
            [
                np.searchsorted(own, column, side="left")
                for own, column in zip(levels, problem.scores.T, strict=True)
            ],
            axis=1,
        )
        self._ends = EndBounds(
            problem,
            self._costing,
            goal.rate,
            self._bins,
            [len(own) for own in levels],
        )

    def start_from(self, configuration):
        """Takes a `Configuration` as the best so far, or `None`."""
        if configuration is not None:
            worth = self._goal.worth(configuration.cost, configuration.value)
            self._known, self._best_worth = configuration, float(worth)

    def run(self, seconds, progress=None, clock=time.monotonic):
        """Searches until nothing can be better, or time is up.

        Args:
            seconds: How long; at least the start is always made.
            progress: Called with the share of the time that is over.
            clock: Tells the time in seconds.

        Returns:
            A `Found`.
        """
        end = clock() + seconds
        order = itertools.count()
        waiting = [(-np.inf, next(order), ())]
        expanded = set()
        while waiting:
            if waiting[0][2] in expanded:
                heapq.heappop(waiting)
                continue
            if self._hopeless(-waiting[0][0]):
                self.pruned += len(waiting)
                waiting = []
                break
            left = end - clock()
            if left < 0 and self.nodes:
                break
            beginning = self._promising(expanded) if self.nodes else ()
            if beginning is None:
                beginning = heapq.heappop(waiting)[2]
            expanded.add(beginning)
            for child_bound, child in self._expand(beginning):
                heapq.heappush(waiting, (-child_bound, next(order), child))
            self.nodes += 1
            if progress is not None and not self.nodes % 20:
                progress(min(1.0, 1 - left / seconds))
        gap = 0.0
        if waiting:
            gap = max(0.0, -waiting[0][0] - self._best_worth)
        return Found(
            best=self._configuration(),
            worth=self._best_worth,
            gap=gap,
            evaluated=self.evaluated,
            nodes=self.nodes,
            pruned=self.pruned,
        )

    def _promising(self, expanded):
        """A beginning of the best so far that was not looked at, or `None`.

        What is close to the best is often better still, and the better it is,
        the more can be pruned.
        """
        steps = tuple(self._best or ())
        for length in range(1, min(len(steps), self._max_exits - 2) + 1):
            if steps[:length] not in expanded:
                return steps[:length]
        return None

    def _hopeless(self, worth):
        return worth <= self._best_worth + _ROUNDING

    def _configuration(self):
        if self._best is None:
            return self._known
        return evaluate(
            self._problem,
            [i for i, _ in self._best],
            [self._levels[i][level] for i, level in self._best],
            self._costing_number,
        )

    def _expand(self, beginning):
        """Evaluates the ends of a beginning; yields longer ones that may do."""
        inside, cost, value, reached, place = self._state(beginning)
        later = np.flatnonzero(self._problem.places > place)
        room = self._max_exits - len(beginning)
        costing = self._costing
        needed = costing.required
        chosen = {i for i, _ in beginning}
        if needed is not None and needed not in chosen:
            # Behind the cut's place it can no longer be chosen.
            later = later[later <= needed]
        nexts = []
        for j in later:
            step = costing.prefix[j] - reached + costing.blocks[j]
            one = _Next(
                j,
                len(self._levels[j]),
                self._bins[inside, j],
                self._problem.values[inside, j],
                cost + len(inside) * step,
                value,
            )
            nexts.append(one)
            if not beginning:
                self._end_with(beginning, inside, one)
        if room < 2:
            return
        for one in nexts:
            behind = np.flatnonzero(
                self._problem.places > self._problem.places[one.number]
            )
            for k in behind:
                self._end_with_two(beginning, inside, one, int(k))
        if room < 3:
            return
        for one in nexts:
            yield from self._longer(beginning, inside, one)

    def _longer(self, beginning, inside, one):
        goal, n = self._goal, self._problem.num_samples

        def bounds_of(ends):
            return goal.bound((one.values + ends - goal.rate * one.cost) / n)

        ends = self._ends.of_levels(
            inside,
            one.number,
            self._max_exits - len(beginning) - 1,
            lambda simple: ~self._hopeless(bounds_of(simple)),
        )
        bounds = bounds_of(ends)
        # Where nobody leaves, or all do, a shorter one is as good.
        real = (one.staying > 0) & (one.staying < len(inside))
        real[1:] &= one.staying[1:] != one.staying[:-1]
        for level in np.flatnonzero(real):
            if self._hopeless(bounds[level]):
                self.pruned += 1
            else:
                step = (int(one.number), int(level))
                yield bounds[level], (*beginning, step)

    def _state(self, beginning):
        """Who passes a beginning, and what it has come to so far."""
        problem, costing = self._problem, self._costing
        inside = np.arange(problem.num_samples)
        cost = value = reached = 0.0
        place = -1
        for i, level in beginning:
            step = costing.prefix[i] - reached + costing.blocks[i]
            cost += len(inside) * step
            leaves = self._bins[inside, i] > level
            value += problem.values[inside[leaves], i].sum()
            inside = inside[~leaves]
            reached, place = costing.prefix[i], problem.places[i]
        return inside, cost, value, reached, place

    def _legal(self, *numbers):
        return self._costing.required in (None, *numbers)

    def _end_with(self, beginning, inside, one):
        """All configurations in which one more exit follows."""
        if not self._legal(one.number, *(i for i, _ in beginning)):
            return
        costing = self._costing
        final = np.bincount(
            one.bins, self._problem.values[inside, -1], one.size + 1
        )
        values = one.values + np.cumsum(final)[: one.size]
        rest = costing.final - costing.prefix[one.number]
        costs = one.cost + one.staying * rest
        self._take(
            costs,
            values,
            lambda rows: [
                (*beginning, (int(one.number), int(row))) for row in rows
            ],
        )

    def _end_with_two(self, beginning, inside, one, k):
        """All configurations in which a certain two exits follow."""
        if not self._legal(one.number, k, *(i for i, _ in beginning)):
            return
        costing, values = self._costing, self._problem.values
        rows, columns = one.size, len(self._levels[k])
        shape = rows + 1, columns + 1
        cells = one.bins * shape[1] + self._bins[inside, k]
        size = shape[0] * shape[1]
        staying = _cumulated(np.bincount(cells, minlength=size), shape)
        # All leave at k, and those that stay there too change to `final`.
        of_k = np.bincount(one.bins, values[inside, k], rows + 1)
        change = values[inside, -1] - values[inside, k]
        changed = _cumulated(np.bincount(cells, change, size), shape)
        at_k = one.values + np.cumsum(of_k)[:rows]
        step = costing.prefix[k] - costing.prefix[one.number]
        costs = one.cost + one.staying * (step + costing.blocks[k])
        costs = costs[:, None] + staying * (costing.final - costing.prefix[k])
        self._take(
            costs.ravel(),
            (at_k[:, None] + changed).ravel(),
            lambda found: [
                (
                    *beginning,
                    (int(one.number), int(row // columns)),
                    (k, int(row % columns)),
                )
                for row in found
            ],
        )

    def _take(self, costs, values, steps_of):
        """Takes evaluated configurations, as sums over all samples."""
        n = self._problem.num_samples
        costs, values = costs / n, values / n
        self.evaluated += len(costs)
        goal = self._goal
        worth = np.where(
            goal.meets(costs, values), goal.worth(costs, values), -np.inf
        )
        row = int(worth.argmax())
        if worth[row] > self._best_worth:
            self._best_worth = float(worth[row])
            self._best = steps_of([row])[0]
        if self._front is not None:
            self._front.add(
                costs,
                values,
                lambda rows: np.array([self._key(s) for s in steps_of(rows)]),
            )

    def _key(self, steps):
        num = self._problem.num_candidates
        key = [self._costing_number, *[0] * (2 * num)]
        for i, level in steps:
            key[1 + i], key[1 + num + i] = 1, level
        return key


class _Next:
    """An exit that follows a beginning, at all of its levels.

    Args:
        number: Which candidate.
        size: How many levels it has.
        bins: Integer array (m,) of the samples that reach it.
        worth: Array (m,), what they are worth if they leave here.
        cost: Sum of costs once all have run its block.
        value: Sum of values of those that left before.
    """

    def __init__(self, number, size, bins, worth, cost, value):
        self.number, self.size, self.bins, self.cost = number, size, bins, cost
        counts = np.bincount(bins, minlength=size + 1)
        #: How many stay at each level.
        self.staying = np.cumsum(counts)[:size]
        gained = np.cumsum(np.bincount(bins, worth, size + 1))
        #: Sum of values of those that have left, at each level.
        self.values = value + gained[-1] - gained[:size]


def _cumulated(table, shape):
    """Sums over all bins up to each level, without the last bins."""
    table = table.reshape(shape)[:-1, :-1].astype("float64")
    return table.cumsum(axis=0, out=table).cumsum(axis=1, out=table)


def configuration_of(problem, levels, key):
    """The `Configuration` of a key of the front.

    Args:
        problem: The `problem.Problem`.
        levels: Its levels, as in `Search`.
        key: A row of keys, as `Search` has made it.
    """
    num = problem.num_candidates
    chosen = np.flatnonzero(key[1 : 1 + num])
    return evaluate(
        problem,
        chosen,
        [levels[i][key[1 + num + i]] for i in chosen],
        int(key[0]),
    )
