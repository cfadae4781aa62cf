"""Batches of an edge as they arrive, a few of them ahead of their turn."""

import asyncio

#: There are no more requests.
END = object()


class Arrivals:
    """Reads ahead from a stream; its bound holds the edge back.

    Args:
        requests: Asynchronous iterator of requests.
        window: How many of them may wait here.
    """

    def __init__(self, requests, window):
        self._queue = asyncio.Queue(window)
        self._reading = asyncio.create_task(self._read(requests))

    @property
    def waiting(self):
        """How many of them wait now."""
        return self._queue.qsize()

    async def next(self, timeout_s):
        """The next request.

        Args:
            timeout_s: Seconds to wait for it.

        Returns:
            A request; `None` if none came in time, or `END`.

        Raises:
            Exception: What the stream has ended with.
        """
        try:
            found = await asyncio.wait_for(self._queue.get(), timeout_s)
        except TimeoutError:
            return None
        if isinstance(found, Exception):
            raise found
        return found

    def close(self):
        """Reads no more."""
        self._reading.cancel()

    async def _read(self, requests):
        try:
            async for request in requests:
                await self._queue.put(request)
        except Exception as error:
            await self._queue.put(error)
        else:
            await self._queue.put(END)
