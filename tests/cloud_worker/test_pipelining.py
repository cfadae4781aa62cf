"""Requests of a stream are answered side by side, and never without bound."""

import asyncio

import pytest

from cloud_worker.pipelining import pipelined


class Answering:
    """Answers a request, itself, once the test lets it."""

    def __init__(self):
        self.started, self.cancelled = [], []
        self._lets = {}

    async def __call__(self, request):
        self.started.append(request)
        try:
            await self._let(request).wait()
        except asyncio.CancelledError:
            self.cancelled.append(request)
            raise
        return request

    def let(self, *requests):
        for request in requests:
            self._let(request).set()

    def _let(self, request):
        return self._lets.setdefault(request, asyncio.Event())


async def these(*requests, then=None):
    for request in requests:
        yield request
    if isinstance(then, Exception):
        raise then
    if then is not None:
        await then.wait()


async def settled():
    """Lets everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


class Peer:
    """Takes answers one by one, if it takes any, and starts `pipelined`."""

    def __init__(self, answer, requests, limit=8, stopping=None, takes=True):
        self.found, self._gate = [], asyncio.Event()
        if takes:
            self._gate.set()
        self.call = asyncio.create_task(
            pipelined(
                answer,
                requests,
                self._write,
                limit,
                stopping or asyncio.Event(),
            )
        )

    def take(self):
        self._gate.set()

    async def _write(self, reply):
        assert not hasattr(self, "writing")
        self.writing = reply
        await self._gate.wait()
        await asyncio.sleep(0)
        del self.writing
        self.found.append(reply)


def run(scenario):
    async def in_time():
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(in_time())


def test_answers_come_as_they_are_ready():
    async def scenario():
        answer = Answering()
        peer = Peer(answer, these(1, 2, 3))
        for request in (2, 3, 1):
            answer.let(request)
            await settled()
            assert peer.found[-1] == request
        await peer.call
        assert answer.started == [1, 2, 3] and peer.found == [2, 3, 1]

    run(scenario)


def test_only_so_many_are_read_while_none_is_taken():
    async def scenario():
        answer, read = Answering(), []

        async def requests():
            for request in range(100):
                read.append(request)
                yield request

        answer.let(*range(100))
        peer = Peer(answer, requests(), limit=4, takes=False)
        await settled()
        # All four are answered, and still take their places.
        assert len(answer.started) == 4 and len(read) == 5
        peer.take()
        await peer.call
        assert sorted(peer.found) == list(range(100))

    run(scenario)


def test_who_stops_answers_what_it_has_read():
    async def scenario():
        answer, stopping = Answering(), asyncio.Event()
        requests = these(1, 2, then=asyncio.Event())
        peer = Peer(answer, requests, stopping=stopping)
        await settled()
        stopping.set()
        await settled()
        assert not peer.call.done()
        answer.let(1, 2)
        await peer.call
        assert peer.found == [1, 2]

    run(scenario)


def test_who_has_stopped_reads_nothing():
    async def scenario():
        answer, stopping = Answering(), asyncio.Event()
        stopping.set()
        peer = Peer(answer, these(then=asyncio.Event()), stopping=stopping)
        await peer.call
        assert not peer.found

    run(scenario)


def test_a_peer_that_leaves_takes_its_requests_along():
    async def scenario():
        answer = Answering()
        peer = Peer(answer, these(1, 2, then=asyncio.Event()))
        answer.let(1)
        await settled()
        assert peer.found == [1]
        peer.call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await peer.call
        assert answer.cancelled == [2]

    run(scenario)


@pytest.mark.parametrize("where", ["requests", "answer", "write"])
def test_errors_that_end_the_stream(where):
    async def scenario():
        answer, error = Answering(), ConnectionError("gone")
        answer.let(1)

        async def failing(_):
            raise error

        requests = these(1, 2, then=error if where == "requests" else None)
        call = asyncio.create_task(
            pipelined(
                failing if where == "answer" else answer,
                requests,
                failing if where == "write" else asyncio.Queue().put,
                8,
                asyncio.Event(),
            )
        )
        with pytest.raises(ConnectionError, match="gone"):
            await call
        assert answer.cancelled == ([] if where == "answer" else [2])
        await settled()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(scenario)
