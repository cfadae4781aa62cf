"""All subsets of candidates with one shared threshold, each one evaluated.

Why that is cheap: at a threshold all that matters of a sample is the set m of
candidates at which it would leave. It passes a chosen set S if m and S have
nothing in common, so the number of samples that pass S, and the sum of what
they are worth, are sums over the subsets of the complement of S. Those are
known for all S at once after C additions for each (a zeta transform), however
many samples there are; costs and values then follow from S without its last
candidate.
"""

import functools

import numpy as np

from keras_earlyexit.tuning.running_front import RunningFront

#: Numbers that are worked on at once: they fit the cache.
_BLOCK = 2**19


def search(problem, levels, max_exits=None, progress=None):
    """Evaluates every configuration with one threshold for all exits.

    Args:
        problem: A `problem.Problem`.
        levels: Array (L,) of thresholds.
        max_exits: How many candidates may be chosen; `None`: all.
        progress: Called with the share that is done.

    Returns:
        `(front, count)`: a `RunningFront` with the keys (costing, set of
        candidates as bits, number of the level), and the number of
        configurations that were evaluated.
    """
    num = problem.num_candidates
    allowed = _allowed(problem, max_exits)
    front = RunningFront(3)
    step = max(1, _BLOCK >> num)
    count = 0
    for start in range(0, len(levels), step):
        part = levels[start : start + step]
        tables = _Tables(problem, part)
        for which, costing in enumerate(problem.costings):
            costs, values = tables.evaluate(costing)
            sets = allowed[which]
            count += len(sets) * len(part)

            front.add(
                costs[sets].ravel(),
                values[sets].ravel(),
                functools.partial(_keys, which, sets, start, len(part)),
            )
        if progress is not None:
            progress((start + len(part)) / len(levels))
    n = problem.num_samples
    front.costs, front.values = front.costs / n, front.values / n
    return front, count


def _keys(which, sets, start, size, rows):
    """Costing, set and level of some rows of a block."""
    costings = np.full(len(rows), which)
    return np.stack([costings, sets[rows // size], start + rows % size], axis=1)


def members(bits):
    """The numbers of the candidates in a set."""
    return tuple(i for i in range(int(bits).bit_length()) if bits >> i & 1)


def _allowed(problem, max_exits):
    """For each costing the sets that may be chosen, as bits."""
    num = problem.num_candidates
    sets = np.arange(2**num)
    sizes = np.zeros(2**num, int)
    single = np.ones(2**num, bool)
    for i in range(num):
        here = (sets >> i & 1).astype(bool)
        sizes += here
        for j in np.flatnonzero(problem.places[:i] == problem.places[i]):
            single &= ~(here & (sets >> j & 1).astype(bool))
    most = num if max_exits is None else max_exits
    legal = single & (sizes >= 1) & (sizes <= most)
    found = []
    for costing in problem.costings:
        chosen = legal
        if costing.required is not None:
            chosen = legal & (sets >> costing.required & 1).astype(bool)
        found.append(np.flatnonzero(chosen))
    return found


class _Tables:
    """Sums over the samples that pass each set, at some thresholds.

    Args:
        problem: A `problem.Problem`.
        levels: Array (L,) of thresholds.
    """

    def __init__(self, problem, levels):
        num, size = problem.num_candidates, len(levels)
        self._shape = 2**num, size
        leaves = problem.scores[:, :, None] > levels
        which = np.zeros((problem.num_samples, size), "int64")
        for i in range(num):
            which += leaves[:, i].astype("int64") << i
        columns = np.arange(size)
        values = problem.values
        # Samples that pass a set, and what they are worth at `final`.
        self._passing = _passed(which * size + columns, None, num, size)
        last = np.repeat(values[:, -1], size)
        self._final = _passed(which * size + columns, last, num, size)
        # What those are worth that pass a set of earlier candidates and leave.
        self._leaving = []
        for i in range(num):
            cells = (which & (2**i - 1)) * size + columns
            weights = (leaves[:, i] * values[:, i, None]).ravel()
            self._leaving.append(_passed(cells, weights, i, size))

    def evaluate(self, costing):
        """Costs and values of all samples: two arrays (sets, levels)."""
        costs, values = np.zeros(self._shape), np.zeros(self._shape)
        reached = np.zeros(self._shape[0])
        for i, leaving in enumerate(self._leaving):
            low, high = slice(2**i), slice(2**i, 2 ** (i + 1))
            step = costing.prefix[i] + costing.blocks[i] - reached[low]
            costs[high] = costs[low] + self._passing[low] * step[:, None]
            values[high] = values[low] + leaving
            reached[high] = costing.prefix[i]
        costs += self._passing * (costing.final - reached)[:, None]
        values += self._final
        return costs, values


def _passed(cells, weights, num, size):
    """Sums over the samples whose set has nothing in common with each set."""
    table = np.bincount(cells.ravel(), weights, minlength=size << num).astype(
        "float64"
    )
    for i in range(num):
        halves = table.reshape(-1, 2, size << i)
        halves[:, 1] += halves[:, 0]
    # Sums over subsets; those of the complement stand at the other end.
    return table.reshape(2**num, size)[::-1]
