"""The few batch sizes that stages are compiled for and batches filled up to."""

import bisect
import collections
import itertools

# Each is compiled once for every stage, which takes seconds.
MOST_OWN = 4
MOST_SEEN = 256


class Buckets:
    """A fixed grid of sizes, and some that fit the traffic seen.

    The grid wastes up to a third of a batch. How many samples go on behind an
    exit is much alike from batch to batch, though, so that a few sizes of
    one's own waste little. They are chosen when asked for, since compiling for
    them would hold up an answer.
    """

    def __init__(self):
        self._seen = collections.Counter()
        self.own = ()

    def __call__(self, rows):
        """The size for some rows."""
        size = bucket(rows)
        place = bisect.bisect_left(self.own, rows)
        if place < len(self.own):
            size = min(size, self.own[place])
        return size

    def note(self, rows):
        """Counts a batch of so many rows."""
        if rows in self._seen or len(self._seen) < MOST_SEEN:
            self._seen[rows] += 1

    def choose(self):
        """Takes the sizes of one's own that leave least to fill up."""
        seen = sorted(dict(self._seen).items())
        self.own = _best_sizes(seen, MOST_OWN)


def bucket(rows):
    """The smallest size of the grid for some rows: 2^k or 3 * 2^k."""
    size = 1
    while size < rows:
        size *= 2
    smaller = size // 4 * 3
    return smaller if smaller >= rows else size


def _best_sizes(seen, most):
    """At most `most` of the row counts, so that least is filled up.

    Args:
        seen: Sorted pairs of a row count and how often it was seen.
        most: How many sizes.

    Returns:
        A sorted tuple. The largest count seen is among it.
    """
    counts = [often for _, often in seen]
    rows_before = [0, *itertools.accumulate(r * often for r, often in seen)]
    seen_before = [0, *itertools.accumulate(counts)]

    def filling(first, last):
        """Rows filled up where the last count is the size for them all."""
        often = seen_before[last + 1] - seen_before[first]
        return seen[last][0] * often - (
            rows_before[last + 1] - rows_before[first]
        )

    # best[j]: least filling and the sizes for counts up to the j-th, whose
    # largest size is that count; one more size is allowed in every round.
    best = [(filling(0, j), (rows,)) for j, (rows, _) in enumerate(seen)]
    for _ in range(most - 1):
        best = [
            min(
                best[j],
                *(
                    (best[i][0] + filling(i + 1, j), (*best[i][1], rows))
                    for i in range(j)
                ),
                key=lambda found: found[0],
            )
            if j
            else best[j]
            for j, (rows, _) in enumerate(seen)
        ]
    return best[-1][1] if best else ()
