"""Averages the edges' own segments, over gRPC."""

import asyncio
import contextlib

from cloud_worker.logs import fields, logger
from cloud_worker.training.rounds import Offer, Rounds
from protos import averaging
from protos.errors import CloudUnavailable, WireError

_MAX_SAMPLES = 1 << 40


class Averaging:
    """Answers the method `Average`. To be used from one event loop.

    Args:
        shapes: The shape of each weight of the edges' segment.
        folder: Where the last average is kept.
        quorum: Edges without which a round has no average.
        wait_s: Seconds after the first offer at which a round ends.

    Raises:
        ValueError: If there is nothing to average, or the folder is of
            another training.
        OSError: If the folder cannot be used.
    """

    def __init__(self, shapes, folder, quorum=1, wait_s=60.0):
        self.form = averaging.form_sha256(shapes)
        self._length = averaging.num_numbers(shapes)
        if not 0 < self._length <= averaging.MAX_NUMBERS:
            raise ValueError(
                f"Expected 1 to {averaging.MAX_NUMBERS} weights of an edge, to "
                f"be averaged. Received: {self._length}. Cut the model behind "
                "another exit, or do without averages."
            )
        self.wait_s = wait_s
        self._rounds = Rounds(folder, self.form, quorum, wait_s)
        self._members = {}
        self._changed = asyncio.Condition()

    @property
    def max_message_bytes(self):
        """Bytes of the largest message of this method."""
        return 4 * self._length + (64 << 10)

    @contextlib.asynccontextmanager
    async def member(self, edge_id):
        """While it lasts, rounds wait for this edge too."""
        self._members[edge_id] = self._members.get(edge_id, 0) + 1
        try:
            yield
        finally:
            self._members[edge_id] -= 1
            if not self._members[edge_id]:
                del self._members[edge_id]
            async with self._changed:
                self._changed.notify_all()

    async def average(self, request, edge_id):
        """Takes an offer and waits for the end of its round.

        Args:
            request: A `split_pb2.AverageRequest`.
            edge_id: Whose it is.

        Returns:
            A `split_pb2.AverageReply` with the newest average.

        Raises:
            DamagedData, WireError: If the request cannot be right.
            CloudUnavailable: If the average cannot be written.
        """
        vector = averaging.read(request, request.number, self._length)
        if request.number:
            if vector is None or not 0 < request.samples <= _MAX_SAMPLES:
                raise WireError(
                    "Expected weights, and the samples behind them. Received: "
                    f"{request.samples} samples. Update the edge worker."
                )
            await self._offer(
                edge_id, Offer(request.number, request.samples, vector)
            )
            return averaging.reply(*self._rounds.last)
        last = self._rounds.last
        return averaging.reply(*last._replace(vector=self._rounds.newest))

    async def _offer(self, edge_id, offer):
        async with self._changed:
            if not self._rounds.add(edge_id, offer):
                return
            self._changed.notify_all()
            before = self._rounds.last.round
            while self._rounds.last.round == before:
                if self._rounds.is_due(set(self._members)):
                    await self._end()
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._rounds.ends_in_s):
                        await self._changed.wait()

    async def _end(self):
        try:
            # Nobody else gets in meanwhile: the condition is held.
            await asyncio.to_thread(self._rounds.end)
        except OSError as error:
            raise CloudUnavailable(
                "Expected a folder for averages that can be written. "
                f"Received: {error}. Make room on the disk."
            ) from error
        last = self._rounds.last
        logger.info(
            "averaged" if last.vector is not None else "too few to average",
            extra=fields(
                round=last.round, edges=last.edges, samples=last.samples
            ),
        )
        self._changed.notify_all()
