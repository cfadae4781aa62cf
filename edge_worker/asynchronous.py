"""The edge worker for programs that use asyncio."""

import asyncio
import concurrent.futures

from edge_worker.worker import EdgeWorker

#: Calls that run at the same time; others wait for their turn.
_MAX_CALLS = 32


class AsyncEdgeWorker:
    """An `EdgeWorker` whose `predict` is awaited.

    It takes what an `EdgeWorker` takes, and starts with `async with` or with
    the first call, without holding up the event loop.

    Args:
        bundle: As for `EdgeWorker`.
        target: As for `EdgeWorker`.
        **settings: As for `EdgeWorker`.

    Example:

    ```python
    async with AsyncEdgeWorker(
        "digits_cut/segment_0", "127.0.0.1:50051", insecure=True
    ) as worker:
        result = await worker.predict(x)
    ```
    """

    def __init__(self, bundle, target, **settings):
        self._arguments = (bundle, target), settings
        self._worker = None
        self._starting = asyncio.Lock()
        self._pool = concurrent.futures.ThreadPoolExecutor(
            _MAX_CALLS, "edge-worker"
        )

    @property
    def worker(self):
        """The `EdgeWorker`; `None` before the start."""
        return self._worker

    async def start(self):
        """Loads the bundle and says hello; raises as `EdgeWorker` does."""
        async with self._starting:
            if self._worker is None:
                args, settings = self._arguments
                self._worker = await self._run(EdgeWorker, *args, **settings)

    async def predict(self, x, batch_size=None):
        """As `EdgeWorker.predict`."""
        await self.start()
        return await self._run(self._worker.predict, x, batch_size)

    async def close(self):
        """As `EdgeWorker.close`; calls under way end first."""
        await asyncio.to_thread(self._pool.shutdown)
        if self._worker is not None:
            await asyncio.to_thread(self._worker.close)

    async def __aenter__(self):
        await self.start()
        return self

    async def __aexit__(self, *_):
        await self.close()

    async def _run(self, call, *args, **kwargs):
        future = self._pool.submit(call, *args, **kwargs)
        return await asyncio.wrap_future(future)
