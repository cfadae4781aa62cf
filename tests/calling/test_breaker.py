"""The circuit breaker, on a clock that tests set."""

import concurrent.futures

import pytest

from protos.calling.breaker import CLOSED, HALF_OPEN, OPEN, CircuitBreaker


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return CircuitBreaker(max_failures=3, probe_every_s=0.5, clock=clock)


def test_opens_after_failures_in_a_row(breaker):
    for _ in range(2):
        breaker.failed()
        assert breaker.allows()
    breaker.succeeded()
    for _ in range(2):
        breaker.failed()
    assert breaker.state == CLOSED
    breaker.failed()
    assert (breaker.state, breaker.allows()) == (OPEN, False)
    assert breaker.times_opened == 1


def test_opens_at_once_if_told(breaker):
    breaker.failed(opens=True)
    assert breaker.state == OPEN


def test_the_first_probe_comes_at_once_and_the_next_after_a_while(
    breaker, clock
):
    assert not breaker.try_probe()
    breaker.failed(opens=True)
    assert breaker.probe_in_s() == 0
    assert breaker.try_probe()
    assert breaker.state == HALF_OPEN
    breaker.failed()
    assert breaker.state == OPEN
    assert not breaker.try_probe()
    assert breaker.probe_in_s() == pytest.approx(0.5)
    clock.now += 0.51
    assert breaker.try_probe()
    breaker.succeeded()
    assert breaker.state == CLOSED
    assert breaker.times_opened == 1


def test_nothing_passes_while_it_is_half_open(breaker):
    breaker.failed(opens=True)
    breaker.try_probe()
    assert not breaker.allows()
    assert not breaker.try_probe()


def test_only_one_of_many_threads_probes(breaker):
    breaker.failed(opens=True)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: breaker.try_probe(), range(200)))
    assert sum(found) == 1
