"""Trains the later segment from what edges send, over gRPC.

Everything that touches the model runs in one thread, batch after batch: so
the order in which batches are applied is a sequence, and the loop that talks
to the edges never waits for a step.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import time

import grpc

from cloud_worker.logs import fields, logger
from cloud_worker.messages import hello_reply
from cloud_worker.training import decoding
from cloud_worker.training.learner import Learner
from cloud_worker.training.ledger import Ledger
from cloud_worker.training.remote_ledger import RemoteLedger
from cloud_worker.training.segment import SegmentStepper
from keras_earlyexit.storage.urls import is_url
from protos import split_pb2, training
from protos.errors import CloudUnavailable, Refused, SplitError
from protos.identity import (
    Identity,
    difference,
    differences,
    mismatch,
    protocol_differences,
)
from protos.limits import Limits

_GAP = split_pb2.Status(
    code=grpc.StatusCode.FAILED_PRECONDITION.value[0],
    sentence="Another batch is expected. Say hello again.",
)
_END = object()
# How often to look whether the journal for a further worker has room again.
_FULL_S = 0.1


class Trainer:
    """Answers the methods `Hello`, to train, and `Train`.

    To be used from one event loop.

    Args:
        stepper: As for `Learner`; see `for_segment`.
        agreement: What is trained, as `SegmentModel.agreement` says it.
        folder: Where the ledger is, or its URL in an object store.
        commit_every: Batches from one commit to the next.
        max_rows: Rows of the largest batch.
        window: Batches of an edge that may wait here.
        idle_commit_s: Seconds without a batch after which what is applied is
            committed.
        on_health: Called with `True` or `False` when commits start to work,
            or to fail.
        averaging: An `Averaging` of the edges' own segments, or `None`.
        outlet: The `Outlet` of the stepper, or `None` for the last segment.
        publisher: A `Publisher`, or `None` if no generations are written.

    Raises:
        ValueError: If the ledger is damaged, in use or of another model.
        OSError: If the folder cannot be used.
    """

    def __init__(
        self,
        stepper,
        agreement,
        folder,
        *,
        commit_every=20,
        max_rows=1024,
        window=8,
        idle_commit_s=0.3,
        on_health=None,
        averaging=None,
        outlet=None,
        publisher=None,
    ):
        self._agreement = agreement
        self._recipe = training.digest(agreement)
        self.identity = training.identity_of(agreement)
        self.limits = Limits.for_specs(self.identity.feature, max_rows)
        self._window, self._idle_commit_s = window, idle_commit_s
        self._on_health = on_health
        self._averaging, self._averaged = averaging, set()
        self._outlet, self._publisher = outlet, publisher
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
                agreement=self._recipe,
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
        self._is_stopping = False
        self._busy_s, self._began = 0.0, None

    @classmethod
    def for_segment(cls, segment, folder, outlet=None, stepper=None, **options):
        """Trains a compiled `SegmentModel` that is not the first one."""
        agreement = segment.agreement(segment.position)
        if stepper is None:
            stepper = SegmentStepper(segment, outlet)
        return cls(stepper, agreement, folder, outlet=outlet, **options)

    @property
    def max_message_bytes(self):
        """Bytes of the largest message."""
        found = [self.limits.max_message_bytes]
        if self._averaging is not None:
            found.append(self._averaging.max_message_bytes)
        return max(found)

    @property
    def steps(self):
        """Batches that were applied so far, by this ledger."""
        return self._learner.steps

    async def hello(self, request, edge_id):
        """Answers an edge that wants to train.

        Args:
            request: A `split_pb2.HelloRequest`.
            edge_id: Who it is, as its certificate says.

        Returns:
            A `split_pb2.HelloReply`.
        """
        found = self._differences(request)
        reply = hello_reply(None, found)
        if not found:
            expected = await self._run(
                self._learner.meet, edge_id, request.epoch
            )
            reply.accepted = True
            reply.generation = self.identity.generation
            reply.max_rows = self.limits.max_rows
            reply.max_message_bytes = self.limits.max_message_bytes
            reply.expected_sequence = expected
            if request.average_sha256 and self._averaging is not None:
                self._averaged.add(edge_id)
                reply.average_wait_s = self._averaging.wait_s
        logger.info(
            "training refused" if found else "training",
            extra=fields(
                edge_id=edge_id,
                epoch=request.epoch,
                expected=reply.expected_sequence,
                differences=[x._asdict() for x in found],
            ),
        )
        return reply

    async def train(self, requests, edge_id):
        """Applies the batches of one edge and acknowledges them.

        Args:
            requests: Asynchronous iterator of `split_pb2.TrainRequest`.
            edge_id: Who sends them.

        Yields:
            `split_pb2.TrainReply`: one for each batch, and one more where a
            commit came later.
        """
        async with contextlib.AsyncExitStack() as membership:
            if edge_id in self._averaged:
                await membership.enter_async_context(
                    self._averaging.member(edge_id)
                )
            async for reply in self._train(requests, edge_id):
                yield reply

    async def average(self, request, edge_id):
        """Takes part in a round of averaging.

        Args:
            request: A `split_pb2.AverageRequest`.
            edge_id: Whose it is.

        Returns:
            A `split_pb2.AverageReply`.

        Raises:
            Fenced: If a newer run of the edge is known.
            Refused: If nothing is averaged here.
        """
        self._check_generation(request)
        if self._averaging is None:
            raise Refused(
                "Expected a request of another kind. Received: weights, of "
                "which no average is made here. Pass --average-quorum."
            )
        await self._run(self._learner.check_run, edge_id, request.epoch)
        return await self._averaging.average(request, edge_id)

    async def publish(self, request, edge_id):
        """Writes what is trained as a new generation.

        Args:
            request: A `split_pb2.PublishRequest`.
            edge_id: Who asks.

        Returns:
            A `split_pb2.PublishReply`.

        Raises:
            Fenced: If a newer run of the edge is known.
            Refused: If no generations are written here.
        """
        self._check_generation(request)
        if self._publisher is None:
            raise Refused(
                "Expected a request of another kind. Received: one for a new "
                "generation, which is not written here. Pass --publish."
            )
        await self._run(self._learner.check_run, edge_id, request.epoch)
        name = await self._run(self._publish)
        logger.info(
            "published", extra=fields(weights_sha256=name, steps=self.steps)
        )
        return split_pb2.PublishReply(weights_sha256=name, steps=self.steps)

    def _publish(self):
        """In the thread: between two steps."""
        if not self._learner.commit():
            raise CloudUnavailable(
                "Expected a ledger that can be written. Received: an error. "
                "Make room on the disk."
            )
        return self._publisher.publish()

    async def _train(self, requests, edge_id):
        arrived = asyncio.Queue(self._window)
        reading = asyncio.create_task(_read(requests, arrived))
        try:
            told = 0
            while not self._is_stopping:
                request = await self._next(arrived)
                if request is _END:
                    break
                if request is None:
                    done = await self._commit(edge_id)
                    if done <= told:
                        continue
                    reply = split_pb2.TrainReply(committed=done)
                else:
                    await self._room()
                    outcome = await self._run(self._learn, edge_id, request)
                    reply = self._reply(outcome, arrived.qsize())
                told = reply.committed
                yield reply
                if reply.status.code:
                    return
            await self._commit(edge_id)
        finally:
            reading.cancel()

    def stop(self):
        """Takes no more batches; streams end after those in flight."""
        self._is_stopping = True

    async def close(self, drain_s=10.0):
        """Commits, and lets go of the ledger.

        Args:
            drain_s: Seconds for a further worker to take what is left.
        """
        self.stop()
        await self._run(self._learner.commit)
        if self._outlet is not None:
            await asyncio.to_thread(self._outlet.close, drain_s)
        self._thread.shutdown()
        self._ledger.close()

    async def _next(self, arrived):
        """The next batch; `None` if none came for a while."""
        try:
            request = await asyncio.wait_for(arrived.get(), self._idle_commit_s)
        except TimeoutError:
            return None
        if isinstance(request, Exception):
            raise request
        return request

    async def _room(self):
        """Waits until what goes on to a further worker has room."""
        if self._outlet is None:
            return
        while not await self._run(self._outlet.is_ready):
            await asyncio.sleep(_FULL_S)

    async def _commit(self, edge_id):
        if self._learner.pending:
            await self._run(self._learner.commit)
        return self._learner.committed(edge_id)

    def _learn(self, edge_id, request):
        """In the thread: one batch."""
        self._check_generation(request)
        started = time.monotonic()
        self._began = self._began or started
        batch = decoding.read(request, self._agreement, self.limits)
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

    def _check_generation(self, request):
        found = request.generation[:256], self.identity.generation
        if found[0] != found[1]:
            raise mismatch([difference("generation", *found)])

    def _reply(self, outcome, queued):
        elapsed_s = time.monotonic() - self._began
        reply = split_pb2.TrainReply(
            committed=outcome.committed,
            expected_sequence=outcome.expected,
            loss=outcome.logs.get("loss", 0.0),
            accuracy=outcome.logs.get("accuracy", 0.0),
            queued=queued,
            idle_share=max(0.0, 1.0 - self._busy_s / max(elapsed_s, 1e-9)),
        )
        if outcome.is_gap:
            reply.status.CopyFrom(_GAP)
        return reply

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
            healthy = self._learner.is_healthy
            if healthy != self._was_healthy:
                self._was_healthy = healthy
                logger.log(
                    logging.INFO if healthy else logging.ERROR,
                    "commits work" if healthy else "commits fail",
                    extra=fields(ledger=self._ledger.path),
                )
                if self._on_health is not None:
                    await self._on_health(healthy)

    def _differences(self, request):
        versions = request.protocol_major, request.protocol_minor
        found = protocol_differences(versions)
        if not found:
            found = differences(Identity.of_hello(request), self.identity)
        for what, theirs, ours in (
            ("recipe", request.recipe_sha256, self._recipe),
            (
                "averaged weights",
                request.average_sha256,
                self._averaging and self._averaging.form,
            ),
        ):
            if not found and ours and theirs != ours:
                if what == "recipe" or theirs:
                    found = (difference(what, theirs[:64], ours),)
        return found


async def _read(requests, arrived):
    """Reads ahead; the bound of the queue holds the edge back."""
    try:
        async for request in requests:
            await arrived.put(request)
    except Exception as error:
        await arrived.put(error)
    else:
        await arrived.put(_END)
