"""The cap on what is sent on, on a clock that tests set."""

import pytest

from edge_worker.capping import OffloadCap


class Clock:
    now = 5.0

    def __call__(self):
        return self.now


def test_without_limits_everything_passes():
    assert OffloadCap().take(10**6, 10**6) == 10**6


def test_rows_per_second():
    clock = Clock()
    cap = OffloadCap(rows_per_s=10, clock=clock)
    assert cap.take(100, 30) == 10
    assert cap.take(100, 30) == 0
    clock.now += 0.55
    assert cap.take(100, 30) == 5
    clock.now += 100
    assert cap.take(100, 30) == 10


def test_less_than_a_row_per_second():
    clock = Clock()
    cap = OffloadCap(rows_per_s=0.5, clock=clock)
    assert [cap.take(1, 1), cap.take(1, 1)] == [1, 0]
    clock.now += 2
    assert cap.take(1, 1) == 1


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_share_of_the_rows(share):
    cap = OffloadCap(max_share=share)
    sent = sum(cap.take(10, 10) for _ in range(10_000))
    assert sent <= share * 100_000 + max(1, 256 * share)
    assert sent >= share * 100_000 - 1


def test_rows_that_leave_early_make_room():
    cap = OffloadCap(max_share=0.5)
    while cap.take(10, 10) == 10:
        pass
    cap.take(20, 0)
    assert cap.take(10, 10) == 10


def test_both_limits():
    cap = OffloadCap(rows_per_s=1000, max_share=0.1, clock=Clock())
    assert cap.take(100, 100) == 35
    cap = OffloadCap(rows_per_s=5, max_share=0.9, clock=Clock())
    assert cap.take(100, 100) == 5
