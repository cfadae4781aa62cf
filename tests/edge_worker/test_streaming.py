"""Requests of one stream: at the same time, bounded, and with an end."""

import concurrent.futures
import threading

import pytest
from waiting import poll

from edge_worker.serving.streaming import Pipeline


@pytest.fixture
def pool():
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        yield pool


def test_every_request_is_answered_once(pool):
    found = Pipeline(lambda x: 2 * x, iter(range(500)), pool, 16)
    assert sorted(found) == list(range(0, 1000, 2))
    assert list(Pipeline(lambda x: x, iter(()), pool, 16)) == []


def test_a_slow_one_holds_up_no_other(pool):
    opened = threading.Event()

    def answer(number):
        if number == 0:
            opened.wait(30)
        return number

    answers = iter(Pipeline(answer, iter(range(5)), pool, 16))
    assert sorted(next(answers) for _ in range(4)) == [1, 2, 3, 4]
    opened.set()
    assert list(answers) == [0]


def test_no_more_are_read_than_may_be_under_way(pool):
    read = []

    def requests():
        for number in range(100):
            read.append(number)
            yield number

    answers = iter(Pipeline(lambda x: x, requests(), pool, 4))
    next(answers)
    # The one handed out counts until the next is asked for; one more is in
    # the reader's hand.
    poll(lambda: len(read) == 5)
    assert len(list(answers)) == 99


def test_a_peer_that_goes_away_ends_it(pool):
    def requests():
        yield from range(3)
        raise RuntimeError("the call was cancelled")

    assert sorted(Pipeline(lambda x: x, requests(), pool, 4)) == [0, 1, 2]


def test_what_was_read_is_answered_after_a_stop(pool):
    closed = threading.Event()

    def requests():
        yield from range(3)
        closed.wait(30)
        yield 3

    pipeline = Pipeline(lambda x: x, requests(), pool, 4)
    answers = iter(pipeline)
    found = [next(answers) for _ in range(3)]
    pipeline.stop()
    assert list(answers) == []
    assert sorted(found) == [0, 1, 2]
    closed.set()


def test_a_reader_that_waits_for_a_slot_ends_with_the_answers(pool):
    answers = iter(Pipeline(lambda x: x, iter(range(100)), pool, 2))
    next(answers)
    answers.close()
    poll(
        lambda: (
            not any(
                thread.name == "split-requests"
                for thread in threading.enumerate()
            )
        )
    )
