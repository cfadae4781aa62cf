"""Many requests of one stream at the same time."""

import asyncio


async def pipelined(answer, requests, limit, stopping):
    """Answers requests as they come and hands on answers as they are ready.

    Args:
        answer: Coroutine function: a request -> its answer. It raises for
            what ends the whole stream.
        requests: Asynchronous iterator of requests.
        limit: Requests at the same time. The next one is not read before, so
            that a peer which reads no answers cannot pile them up here.
        stopping: `asyncio.Event` after which no more requests are read.

    Yields:
        Answers, in any order. It ends when there are no more requests, or
        none are read any more, and all answers were handed on.
    """
    slots = asyncio.Semaphore(limit)
    ready = asyncio.Queue()
    tasks = set()

    async def read():
        async for request in requests:
            await slots.acquire()
            task = asyncio.create_task(answer(request))
            tasks.add(task)
            task.add_done_callback(ready.put_nowait)

    reader = asyncio.create_task(read())
    stopper = asyncio.create_task(stopping.wait())
    for task in (reader, stopper):
        task.add_done_callback(ready.put_nowait)
    try:
        while tasks or not reader.done():
            done = await ready.get()
            if done is stopper:
                reader.cancel()
            elif done is not reader:
                yield done.result()
                # Only now: while the peer does not take it, it is here.
                tasks.discard(done)
                slots.release()
        if not reader.cancelled():
            reader.result()
    finally:
        for task in (reader, stopper, *tasks):
            task.cancel()
        await asyncio.gather(reader, stopper, *tasks, return_exceptions=True)
