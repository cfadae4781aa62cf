"""Many requests of one stream at the same time."""

import asyncio


async def pipelined(answer, requests, write, limit, stopping):
    """Answers requests as they come and hands on answers as they are ready.

    It ends when there are no more requests, or none are read any more, and all
    answers were handed on.

    Args:
        answer: Coroutine function: a request -> its answer. It raises for
            what ends the whole stream.
        requests: Asynchronous iterator of requests.
        write: Coroutine function that hands on an answer. Called for one at a
            time, in any order.
        limit: Requests at the same time. The next one is not read before, so
            that a peer which reads no answers cannot pile them up here.
        stopping: `asyncio.Event` after which no more requests are read.

    Raises:
        Exception: The first that reading, answering or writing raised.
    """
    slots, writing = asyncio.Semaphore(limit), asyncio.Lock()

    async def one(request):
        reply = await answer(request)
        async with writing:
            await write(reply)
        slots.release()

    async def read(group):
        async for request in requests:
            await slots.acquire()
            group.create_task(one(request))

    stopper = asyncio.create_task(stopping.wait())
    try:
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(read(group))
            stopper.add_done_callback(lambda _: reader.cancel())
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    finally:
        stopper.cancel()
