"""Requests of a stream are answered side by side, and never without bound."""

import asyncio
import contextlib

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


def run(scenario):
    async def in_time():
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(in_time())


def test_answers_come_as_they_are_ready():
    async def scenario():
        answer = Answering()
        replies = pipelined(answer, these(1, 2, 3), 8, asyncio.Event())
        for request in (2, 3, 1):
            answer.let(request)
            assert await anext(replies) == request
        assert [reply async for reply in replies] == []
        assert answer.started == [1, 2, 3]

    run(scenario)


def test_only_so_many_are_read_while_none_is_taken():
    async def scenario():
        answer, read = Answering(), []

        async def requests():
            for request in range(100):
                read.append(request)
                yield request

        answer.let(*range(100))
        replies = pipelined(answer, requests(), 4, asyncio.Event())
        found = [await anext(replies)]
        await settled()
        # All four are answered, and still take their places.
        assert len(answer.started) == 4 and len(read) == 5
        found += [reply async for reply in replies]
        assert sorted(found) == list(range(100))

    run(scenario)


def test_who_stops_answers_what_it_has_read():
    async def scenario():
        answer, stopping = Answering(), asyncio.Event()
        requests = these(1, 2, then=asyncio.Event())
        replies = pipelined(answer, requests, 8, stopping)
        waiting = asyncio.create_task(anext(replies))
        await settled()
        stopping.set()
        answer.let(1, 2)
        found = [await waiting] + [reply async for reply in replies]
        assert found == [1, 2]

    run(scenario)


def test_who_has_stopped_reads_nothing():
    async def scenario():
        answer, stopping = Answering(), asyncio.Event()
        stopping.set()
        requests = these(then=asyncio.Event())
        replies = pipelined(answer, requests, 8, stopping)
        assert [reply async for reply in replies] == []

    run(scenario)


def test_a_stream_that_breaks_takes_its_requests_along():
    async def scenario():
        answer = Answering()
        requests = these(1, 2, then=ConnectionError("gone"))
        replies = pipelined(answer, requests, 8, asyncio.Event())
        waiting = asyncio.create_task(anext(replies))
        await settled()
        answer.let(1)
        assert await waiting == 1
        await replies.aclose()
        assert answer.cancelled == [2]

    run(scenario)


@pytest.mark.parametrize("where", ["requests", "answer"])
def test_errors_that_end_the_stream(where):
    async def scenario():
        async def failing(request):
            raise OSError("broken")

        error = ConnectionError("gone")
        requests = these(1, then=error if where == "requests" else None)
        answer = Answering() if where == "requests" else failing
        if where == "requests":
            answer.let(1)
        replies = pipelined(answer, requests, 8, asyncio.Event())
        with pytest.raises(type(error) if where == "requests" else OSError):
            async with contextlib.aclosing(replies):
                async for reply in replies:
                    assert reply == 1
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others

    run(scenario)
