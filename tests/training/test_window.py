"""What is on the way keeps the link busy, and waits in no buffer."""

import heapq

import pytest

from protos.feeding.window import Window


def simulated(rate, round_trip_s, step_s, size):
    """Sends over a link; the share of its time that it was busy, and the most
    seconds that a message waited for those before it."""
    now, free_at, stepped_at = 0.0, 0.0, 0.0
    count = max(100, int(3 * rate / size))
    window = Window(clock=lambda: now)
    answers, busy, longest, sent = [], 0.0, 0.0, 0
    while sent < count or answers:
        if sent < count and window.wait(size, 0):
            window.sent(sent, size)
            longest = max(longest, free_at - now)
            free_at = max(now, free_at) + size / rate
            busy += size / rate
            arrived = free_at + round_trip_s / 2
            stepped_at = max(arrived, stepped_at) + step_s
            sent += 1
            heapq.heappush(answers, (stepped_at + round_trip_s / 2, sent))
        else:
            now, number = heapq.heappop(answers)
            window.answered(number)
    return busy / now, longest


@pytest.mark.parametrize("size", [2_000, 20_000, 200_000])
@pytest.mark.parametrize("megabits", [1, 10, 100])
def test_link_that_is_slower_than_the_cloud(megabits, size):
    rate = megabits * 1e6 / 8
    busy, waited_s = simulated(rate, 0.02, step_s=0.5 * size / rate, size=size)
    assert busy > 0.9
    assert waited_s <= 2 * (size / rate + 0.04 + 0.5 * size / rate) + 0.5


def test_cloud_that_is_slower_than_the_link():
    busy, waited_s = simulated(1e7, 0.02, step_s=0.1, size=100_000)
    # Its steps follow each other: a message takes a tenth of one.
    assert busy == pytest.approx(0.1, rel=0.05)
    assert waited_s < 0.6


def test_waits_for_answers():
    window = Window()
    for number in range(2):
        assert window.wait(1000, 0)
        window.sent(number, 1000)
    assert not window.wait(1000, 0.01) and window.fastest_s is None
    window.answered(1)
    assert window.wait(1000, 0) and window.fastest_s > 0
    assert not window.is_empty
    window.answered(2)
    assert window.is_empty


def test_bunch_of_answers_is_no_fast_link():
    now = 0.0
    window = Window(clock=lambda: now)
    sent = answered = 0

    def fill():
        nonlocal sent
        while window.wait(100, 0):
            window.sent(sent, 100)
            sent += 1

    for _ in range(20):
        # A hundred bytes take 0.1 s.
        fill()
        now, answered = now + 0.1, answered + 1
        window.answered(answered)
    fill()
    before = sent - answered
    # All at once, as after a second in which one of the machines stood still.
    while answered < sent - 1:
        now, answered = now + 1e-4, answered + 1
        window.answered(answered)
        fill()
        assert sent - answered <= 2 * before + 1
        if answered > 20 + before:
            break
