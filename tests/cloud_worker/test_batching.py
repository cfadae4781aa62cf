"""The queue: what runs together, what is refused, what is dropped."""

import math

import pytest

from cloud_worker.batching import (
    MAX_RETRY_AFTER_S,
    MIN_RETRY_AFTER_S,
    Item,
    Queue,
)
from protos.errors import DeadlinePassed, Overloaded


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def queue(clock):
    return Queue(max_rows=20, max_batch=8, clock=clock, spread=lambda: 0.0)


def item(rows=1, deadline=200.0):
    return Item((), rows, deadline)


def test_a_lone_request_is_ready_at_once(queue):
    assert queue.ready_in_s() is None and queue.oldest is None
    queue.add(item())
    assert queue.ready_in_s() == 0 and queue.oldest == 100.0


def test_a_delay_ends_when_the_batch_is_full(clock):
    queue = Queue(20, 8, max_delay_s=0.5, clock=clock)
    queue.add(item(3))
    assert queue.ready_in_s() == 0.5
    clock.now += 0.2
    assert queue.ready_in_s() == pytest.approx(0.3)
    queue.add(item(5))
    assert queue.ready_in_s() == 0
    queue.take()
    queue.add(item())
    clock.now += 9
    assert queue.ready_in_s() == 0


def test_batches_are_filled_in_order(queue):
    items = [item(rows) for rows in (3, 3, 3, 1, 8)]
    for one in items:
        queue.add(one)
    assert queue.rows == 18
    batches = [queue.take()[0] for _ in range(3)]
    assert batches == [items[:2], items[2:4], items[4:]]
    assert queue.take() == ([], []) and queue.rows == 0 == len(queue)


def test_a_request_above_the_batch_runs_alone(queue):
    large = item(12)
    queue.add(large)
    queue.add(item())
    assert queue.take()[0] == [large]


def test_a_full_queue_refuses_at_once(queue):
    for _ in range(2):
        queue.add(item(10))
    with pytest.raises(Overloaded, match="20 rows wait") as caught:
        queue.add(item())
    assert caught.value.retry_after_s > 0
    assert (len(queue), queue.rows) == (2, 20)


def test_retry_after_follows_the_rate_that_was_measured(queue):
    queue.add(item(20))
    for _ in range(100):
        queue.ran(rows=40, seconds=1.0)
    assert queue.retry_after_s() == pytest.approx(0.5, rel=0.01)
    for _ in range(100):
        queue.ran(rows=1, seconds=1000.0)
    assert queue.retry_after_s() == MAX_RETRY_AFTER_S
    queue.take()
    assert queue.retry_after_s() == MIN_RETRY_AFTER_S


def test_those_who_are_refused_do_not_come_back_together(clock):
    first, second = (
        Queue(20, 8, clock=clock, spread=lambda value=value: value)
        for value in (0.0, 1.0)
    )
    for queue in (first, second):
        queue.add(item(20))
    assert second.retry_after_s() == 2 * first.retry_after_s()


def test_what_is_past_its_deadline_does_not_run(queue, clock):
    late, early = item(deadline=101), item(deadline=150)
    queue.add(late)
    queue.add(early)
    clock.now = 101
    assert queue.take() == ([early], [late])
    with pytest.raises(DeadlinePassed):
        queue.add(item(deadline=101))
    assert queue.rows == 0


def test_what_is_past_its_deadline_makes_room(queue, clock):
    late = item(20, deadline=101)
    queue.add(late)
    clock.now = 102
    assert queue.add(item(20)) == [late]
    assert (len(queue), queue.rows) == (1, 20)


def test_what_nobody_waits_for_is_taken_out(queue):
    first, second = item(4), item(5)
    queue.add(first)
    queue.add(second)
    queue.discard(first)
    queue.discard(first)
    assert queue.rows == 5
    assert queue.take() == ([second], [])
    queue.discard(second)
    assert queue.rows == 0


def test_expected_seconds_are_those_of_the_last_batch(queue):
    assert queue.expected_s(1) == math.inf
    queue.ran(rows=4, seconds=0.2)
    assert queue.expected_s(1) == queue.expected_s(4) == 0.2
    assert queue.expected_s(8) == pytest.approx(0.4)
