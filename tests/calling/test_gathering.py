"""Small calls share a message while the peer is busy, and only then."""

import concurrent.futures
import threading
import time

import numpy as np
import pytest
from waiting import poll

from protos.calling import gathering
from protos.calling.answers import Answers
from protos.calling.gathering import Gathering
from protos.errors import CloudUnavailable, WireError

LATER_S = 60.0


class Peer:
    """Answers with what it was sent, when it is let."""

    def __init__(self, queue_s=10.0):
        self.opened = threading.Event()
        self.opened.set()
        self.messages = []
        self.queue_s = queue_s
        self.refuses = lambda values: None

    def __call__(self, arrays, ends_at):
        (values,) = arrays
        self.messages.append(len(values))
        self.opened.wait(30)
        error = self.refuses(values)
        if error is not None:
            raise error
        return Answers(
            predictions=2 * values,
            exit_index=np.arange(len(values)),
            score=values[:, 0],
            degraded=values[:, 0] < 0,
            bytes_up=100 * len(values) + 7,
            bytes_down=11,
            seconds={"cloud_queue": self.queue_s},
        )


@pytest.fixture
def peer():
    return Peer()


@pytest.fixture
def pool():
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        yield pool


@pytest.fixture
def gather(peer, pool, monkeypatch):
    """Makes calls in threads; what waits here waits until a reply comes."""
    monkeypatch.setattr(gathering, "_MAX_WAIT_S", 30.0)
    gathering_ = Gathering(peer)

    def call(value, rows=1, width=2, dtype="float32", within_s=LATER_S):
        arrays = [np.full((rows, width), value, dtype)]
        ends_at = time.monotonic() + within_s
        return pool.submit(gathering_.ask, arrays, rows, ends_at)

    # The first reply says how busy the peer is.
    call(0).result(10)
    call.inner = gathering_
    return call


def hold(peer, gather):
    """Keeps a message out; returns its future."""
    peer.opened.clear()
    peer.messages.clear()
    first = gather(1)
    poll(lambda: len(peer.messages) == 1)
    return first


def waiting(gather):
    group = gather.inner._group
    return 0 if group is None else len(group.calls)


def test_a_lone_call_is_sent_at_once(peer, gather):
    found = gather(3, rows=2).result(10)
    assert peer.messages == [1, 2]
    assert found.predictions.tolist() == [[6, 6], [6, 6]]


def test_calls_that_come_meanwhile_leave_together(peer, gather):
    futures = [hold(peer, gather)]
    for number, rows in enumerate((2, 1, 3)):
        futures.append(gather(number + 2, rows))
        poll(lambda n=number: waiting(gather) == n + 1)
    peer.opened.set()
    found = [future.result(10) for future in futures]
    assert peer.messages == [1, 6]
    for number, answers in enumerate(found):
        assert (answers.predictions == 2 * (number + 1)).all()
    assert [len(answers) for answers in found] == [1, 2, 1, 3]
    # Each byte of the message is somebody's.
    assert sum(answers.bytes_up for answers in found[1:]) == 607
    assert sum(answers.bytes_down for answers in found[1:]) == 11


def test_an_idle_peer_is_asked_by_each_call(peer, gather):
    peer.queue_s = 0.0
    gather(0).result(10)
    futures = [hold(peer, gather), *(gather(i) for i in range(5))]
    poll(lambda: peer.messages == [1] * 6)
    peer.opened.set()
    for future in futures:
        future.result(10)


def test_nobody_waits_for_longer_than_the_queue_is(peer, gather):
    peer.queue_s = 0.01
    gather(0).result(10)
    first = hold(peer, gather)
    second = gather(2)
    # While the first is out.
    poll(lambda: len(peer.messages) == 2)
    peer.opened.set()
    first.result(10), second.result(10)


@pytest.mark.parametrize(
    "other",
    [{"width": 3}, {"dtype": "int32"}, {"within_s": 1.0}, {"within_s": 90.0}],
)
def test_what_does_not_go_together_leaves_alone(other, peer, gather):
    first = hold(peer, gather)
    second = gather(2)
    poll(lambda: waiting(gather) == 1)
    third = gather(3, **other)
    # It takes the place of the second, which leaves.
    poll(lambda: len(peer.messages) == 2)
    peer.opened.set()
    for future in (first, second, third):
        assert len(future.result(10)) == 1
    assert peer.messages == [1, 1, 1]


def test_large_batches_wait_for_nobody(peer, gather, monkeypatch):
    monkeypatch.setattr(gathering, "_MAX_BYTES", 64)
    first = hold(peer, gather)
    second = gather(2, rows=5)
    poll(lambda: peer.messages == [1, 5])
    peer.opened.set()
    first.result(10), second.result(10)


@pytest.mark.parametrize("kind", [WireError, ValueError])
def test_one_that_is_wrong_harms_no_other(kind, peer, gather):
    def refuses(values):
        return kind("a wrong one") if (values == 2).any() else None

    peer.refuses = refuses
    first = hold(peer, gather)
    wrong, right = gather(2), None
    poll(lambda: waiting(gather) == 1)
    right = gather(3)
    poll(lambda: waiting(gather) == 2)
    peer.opened.set()
    first.result(10)
    assert (right.result(10).predictions == 6).all()
    with pytest.raises(kind):
        wrong.result(10)


def test_an_outage_is_everybodys(peer, gather):
    futures = [hold(peer, gather), gather(2)]
    poll(lambda: waiting(gather) == 1)
    futures.append(gather(3))
    poll(lambda: waiting(gather) == 2)
    peer.refuses = lambda values: CloudUnavailable("gone")
    peer.opened.set()
    for future in futures:
        with pytest.raises(CloudUnavailable):
            future.result(10)
    # Nobody asked twice.
    assert peer.messages == [1, 2]
    peer.refuses = lambda values: None
    assert len(gather(4).result(10)) == 1
