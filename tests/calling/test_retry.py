"""When a failed call is made again."""

import pytest

from protos.calling.retry import Backoff, RetryBudget


def test_budget_stops_below_half_and_fills_slowly():
    budget = RetryBudget(max_tokens=10, token_ratio=0.5)
    assert [budget.failed() for _ in range(6)] == [True] * 4 + [False] * 2
    for _ in range(4):
        budget.succeeded()
    assert not budget.failed()
    for _ in range(4):
        budget.succeeded()
    assert budget.failed()


def test_budget_never_holds_more_than_its_maximum():
    budget = RetryBudget(max_tokens=4, token_ratio=1)
    for _ in range(100):
        budget.succeeded()
    assert [budget.failed() for _ in range(3)] == [True, False, False]


def test_budget_bounds_retries_in_an_outage():
    budget = RetryBudget()
    assert sum(budget.failed() for _ in range(1000)) == 4


def test_backoff_has_full_jitter_and_a_bound():
    drawn = iter([0.0, 0.5, 1.0, 1.0, 1.0])
    backoff = Backoff(initial_s=0.1, max_s=0.3, rng=lambda: next(drawn))
    waits = [backoff.wait_s(attempt) for attempt in (1, 2, 2, 3, 10**6)]
    assert waits == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.3])
