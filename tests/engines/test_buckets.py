import itertools

import numpy as np
import pytest

from keras_earlyexit.engines import buckets


def filled(sizes, seen):
    return sum(
        (min(size for size in sizes if size >= rows) - rows) * often
        for rows, often in seen
    )


def test_grid():
    sizes = [buckets.bucket(rows) for rows in range(1, 50)]
    assert sorted(set(sizes)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert all(size >= rows for rows, size in enumerate(sizes, 1))
    # Half a batch more at the most.
    assert all(size < 1.5 * rows for rows, size in enumerate(sizes, 1))


@pytest.mark.parametrize("seed", range(8))
def test_sizes_of_its_own_are_the_best_there_are(seed):
    rng = np.random.default_rng(seed)
    counts = rng.choice(60, size=9, replace=False) + 1
    seen = sorted((int(c), int(rng.integers(1, 9))) for c in counts)
    chosen = buckets.Buckets()
    for rows, often in seen:
        for _ in range(often):
            chosen.note(rows)
    assert chosen.own == ()
    chosen.choose()
    largest = seen[-1][0]
    least = min(
        filled((*others, largest), seen)
        for count in range(buckets.MOST_OWN)
        for others in itertools.combinations([c for c, _ in seen[:-1]], count)
    )
    assert filled(chosen.own, seen) == least
    for rows, _ in seen:
        assert rows <= chosen(rows) <= buckets.bucket(rows)
    assert chosen(largest + 1) == buckets.bucket(largest + 1)


def test_nothing_seen():
    chosen = buckets.Buckets()
    chosen.choose()
    assert chosen(5) == 6
