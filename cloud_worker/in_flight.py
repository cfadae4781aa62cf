"""The requests that are being answered, and an orderly end of them."""

import asyncio

from cloud_worker.pipelining import pipelined
from protos.errors import CloudUnavailable, status_of

#: Requests of one stream at the same time.
_MAX_OF_A_STREAM = 256
# From gRPC's having received a request to its getting here.
_ON_THE_WAY_S = 0.1


class InFlight:
    """Counts requests. To be used from one event loop.

    Args:
        metrics: `Metrics`.

    Example:

    ```python
    with in_flight:
        reply = await answer(request)
    ```
    """

    def __init__(self, metrics):
        self._metrics = metrics
        self._stopping, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._count = 0
        metrics.in_flight.set_function(lambda: self._count)

    def __enter__(self):
        self._count += 1
        self._idle.clear()

    def __exit__(self, kind, error, _):
        self._count -= 1
        if not self._count:
            self._idle.set()
        self._metrics.requests.labels(code_of(error)).inc()

    async def stream(self, answer, requests, write):
        """Answers the requests of a stream, many at the same time.

        Args:
            answer: As for `pipelined`.
            requests: As for `pipelined`.
            write: As for `pipelined`.

        Raises:
            CloudUnavailable: After `stop`, once those that were read have
                their answers.
        """
        await pipelined(
            answer, requests, write, _MAX_OF_A_STREAM, self._stopping
        )
        if self._stopping.is_set():
            raise CloudUnavailable("The worker stops.")

    def stop(self):
        """Reads no more requests from the streams that are open."""
        self._stopping.set()

    async def idle(self):
        """Waits until no request is in flight, nor on its way here."""
        while True:
            await self._idle.wait()
            await asyncio.sleep(_ON_THE_WAY_S)
            if self._idle.is_set():
                return


def code_of(error):
    """Name of the status of a request that ended so; `None` is a success."""
    if error is None:
        return "OK"
    if isinstance(error, asyncio.CancelledError):
        return "CANCELLED"
    return status_of(error)[0].name
