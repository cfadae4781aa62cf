import numpy as np
import pytest

from keras_earlyexit.capacity.traffic import Traffic


@pytest.mark.parametrize("burst_factor", [1, 8])
def test_as_many_calls_as_the_rate_says(burst_factor):
    traffic = Traffic(200, 2.0, 50.0, burst_factor, burst_seconds=0.5)
    times, edge = traffic.draw()
    wanted = traffic.offered_per_second * traffic.seconds
    assert len(times) == len(edge) == pytest.approx(wanted, rel=0.05)
    assert (np.diff(times) >= 0).all()
    assert 0 <= times[0] and times[-1] < traffic.seconds
    assert set(edge.tolist()) == set(range(200))


def test_gaps_are_exponential():
    times, edge = Traffic(50, 4.0, 100.0).draw()
    gaps = np.concatenate([np.diff(times[edge == k]) for k in range(50)])
    assert gaps.mean() == pytest.approx(1 / 4, rel=0.05)
    # As spread as its mean: what tells it from all others.
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)


def test_bursts_come_in_bursts():
    def spread(burst_factor):
        """Variance over mean of the calls of an edge in a second."""
        times, edge = Traffic(100, 1.0, 100.0, burst_factor).draw()
        counts, _, _ = np.histogram2d(
            edge, times, (100, 100), ((0, 100), (0, 100))
        )
        return counts.var() / counts.mean()

    assert spread(1) == pytest.approx(1, rel=0.1)
    assert spread(10) > 3


def test_seeds_are_of_each_edge():
    few, more = Traffic(2, 1.0, 30.0), Traffic(3, 1.0, 30.0)
    (times, edge), (again, other) = few.draw(), more.draw()
    for k in range(2):
        np.testing.assert_array_equal(times[edge == k], again[other == k])
    assert not np.array_equal(times[edge == 0], times[edge == 1])
    different, _ = Traffic(2, 1.0, 30.0, seed=1).draw()
    assert not np.array_equal(times, different)


@pytest.mark.parametrize(
    "wrong",
    [
        {"edges": 0},
        {"edges": 2.5},
        {"calls_per_second": 0.0},
        {"seconds": float("inf")},
        {"burst_factor": 0.5},
        {"seed": -1},
        {"edges": 10**9},
    ],
)
def test_what_cannot_be_is_refused(wrong):
    fields = {"edges": 3, "calls_per_second": 1.0, "seconds": 1.0}
    with pytest.raises((TypeError, ValueError), match="Expected.*Received"):
        Traffic(**{**fields, **wrong})
