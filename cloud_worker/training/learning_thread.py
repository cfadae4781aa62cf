"""The thread that learns: everything that touches the model runs in it.

Batch after batch: so the order in which batches are applied is a sequence, and
the loop that talks to the edges never waits for a step.
"""

import asyncio
import concurrent.futures
import logging
import os
import time

from cloud_worker.logs import fields, logger
from cloud_worker.training import decoding
from cloud_worker.training.learner import Learner
from cloud_worker.training.ledger import Ledger
from cloud_worker.training.remote_ledger import RemoteLedger
from keras_earlyexit.storage.urls import is_url
from protos.errors import CloudUnavailable, SplitError

# How often to look whether the journal for a further worker has room again.
_FULL_S = 0.1


class LearningThread:
    """A `Learner` in a thread of its own, to be used from one event loop.

    Args:
        stepper: As for `Learner`.
        folder: Where the ledger is, or its URL in an object store.
        terms: The `Terms`.
        limits: `Limits` of a batch.
        commit_every: Batches from one commit to the next.
        outlet: The `Outlet` of the stepper, or `None`.
        on_health: Called with `True` or `False` when commits start to work,
            or to fail; may be `None`.

    Raises:
        ValueError: If the ledger is damaged, in use or of another model.
        OSError: If the folder cannot be used.
    """

    def __init__(
        self, stepper, folder, terms, limits, commit_every, outlet, on_health
    ):
        self._terms, self._limits = terms, limits
        self._outlet, self._on_health = outlet, on_health
        self._thread = concurrent.futures.ThreadPoolExecutor(
            1, thread_name_prefix="trainer"
        )
        place = os.fspath(folder)
        self._ledger = (RemoteLedger if is_url(place) else Ledger)(place)
        try:
            if outlet is not None:
                # Only now: the folder is ours.
                outlet.open()
            # In its thread: backends keep state of the thread they are in.
            self._learner = self._thread.submit(
                Learner,
                stepper,
                self._ledger,
                agreement=terms.recipe,
                commit_every=commit_every,
                on_commit=outlet and outlet.committed,
            ).result()
        except BaseException:
            if outlet is not None:
                outlet.close(0.0)
            self._thread.shutdown()
            self._ledger.close()
            raise
        self._was_healthy = True
        self._busy_s, self._began = 0.0, None

    @property
    def steps(self):
        """Batches that were applied so far, by this ledger."""
        return self._learner.steps

    @property
    def idle_share(self):
        """Share of the time, since the first batch, without one."""
        if self._began is None:
            return 1.0
        elapsed_s = max(time.monotonic() - self._began, 1e-9)
        return max(0.0, 1.0 - self._busy_s / elapsed_s)

    @property
    def commit_s(self):
        """Seconds that the last commit took."""
        return self._learner.commit_s

    async def meet(self, edge_id, epoch):
        """As `Learner.meet`."""
        return await self._run(self._learner.meet, edge_id, epoch)

    async def check_run(self, edge_id, epoch):
        """As `Learner.check_run`."""
        await self._run(self._learner.check_run, edge_id, epoch)

    async def learn(self, edge_id, request):
        """Applies a batch, once there is room for what goes on of it.

        Args:
            edge_id: Whose it is.
            request: A `split_pb2.TrainRequest`.

        Returns:
            An `Outcome`.

        Raises:
            SplitError: If it is refused, see `Learner.learn`.
        """
        if self._outlet is not None:
            while not await self._run(self._outlet.is_ready):
                await asyncio.sleep(_FULL_S)
        return await self._run(self._learn, edge_id, request)

    async def commit(self, edge_id):
        """Makes for good what is applied, if anything is.

        Args:
            edge_id: An edge.

        Returns:
            The number below which all batches of the edge are committed.
        """
        if self._learner.pending:
            await self._run(self._learner.commit)
        return self._learner.committed(edge_id)

    async def publish(self, publisher):
        """Writes a generation between two steps; see `Publisher.publish`."""
        return await self._run(self._publish, publisher)

    async def close(self, drain_s):
        """Commits, and lets go of the ledger.

        Args:
            drain_s: Seconds for a further worker to take what is left.
        """
        await self._run(self._learner.commit)
        if self._outlet is not None:
            await asyncio.to_thread(self._outlet.close, drain_s)
        self._thread.shutdown()
        self._ledger.close()

    def _learn(self, edge_id, request):
        self._terms.check(request)
        started = time.monotonic()
        self._began = self._began or started
        batch = decoding.read(request, self._terms.agreement, self._limits)
        place = {}
        if self._outlet is not None:
            place["pass_number"] = request.pass_number
            place["ends_pass"] = request.ends_pass
        outcome = self._learner.learn(
            edge_id,
            request.epoch,
            request.sequence,
            batch.arrays,
            batch.labels,
            batch.weight,
            **place,
        )
        if request.ends_pass and outcome.is_applied:
            self._learner.commit()
            committed = self._learner.committed(edge_id)
            outcome = outcome._replace(committed=committed)
        self._busy_s += time.monotonic() - started
        return outcome

    def _publish(self, publisher):
        if not self._learner.commit():
            raise CloudUnavailable(
                "Expected a ledger that can be written. Received: an error. "
                "Make room on the disk."
            )
        return publisher.publish()

    async def _run(self, function, *arguments):
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self._thread, function, *arguments
            )
        except SplitError as error:
            logger.warning("batch refused", extra=fields(reason=str(error)))
            raise
        finally:
            await self._tell_health()

    async def _tell_health(self):
        healthy = self._learner.is_healthy
        if healthy == self._was_healthy:
            return
        self._was_healthy = healthy
        logger.log(
            logging.INFO if healthy else logging.ERROR,
            "commits work" if healthy else "commits fail",
            extra=fields(ledger=self._ledger.path),
        )
        if self._on_health is not None:
            await self._on_health(healthy)
