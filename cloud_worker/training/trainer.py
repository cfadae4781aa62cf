"""Trains the later segment from what edges send, over gRPC."""

import contextlib

import grpc

from cloud_worker.logs import fields, logger
from cloud_worker.messages import hello_reply
from cloud_worker.training.arriving import END, Arrivals
from cloud_worker.training.learning_thread import LearningThread
from cloud_worker.training.segment import SegmentStepper
from cloud_worker.training.terms import Terms
from protos import split_pb2
from protos.errors import Refused
from protos.limits import Limits

_GAP = split_pb2.Status(
    code=grpc.StatusCode.FAILED_PRECONDITION.value[0],
    sentence="Another batch is expected. Say hello again.",
)


#: A pause lasts so many times as long as a commit before it is used for one.
#: On a slow link there is a pause after each batch, and a large segment that
#: was written in each would keep the next batch waiting.
_IDLE_COMMITS = 4


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
            committed, or four times what the last commit took, if that is more.
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
        self._terms = Terms(agreement, averaging)
        self.identity = self._terms.identity
        self.limits = Limits.for_specs(self.identity.feature, max_rows)
        self._window, self._idle_commit_s = window, idle_commit_s
        self._averaging, self._averaged = averaging, set()
        self._publisher = publisher
        self._learning = LearningThread(
            *(stepper, folder, self._terms, self.limits),
            *(commit_every, outlet, on_health),
        )
        self._is_stopping = False

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
        return self._learning.steps

    async def hello(self, request, edge_id):
        """Answers an edge that wants to train.

        Args:
            request: A `split_pb2.HelloRequest`.
            edge_id: Who it is, as its certificate says.

        Returns:
            A `split_pb2.HelloReply`.
        """
        found = self._terms.differences(request)
        reply = hello_reply(None, found)
        if not found:
            expected = await self._learning.meet(edge_id, request.epoch)
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
        self._terms.check(request)
        if self._averaging is None:
            raise Refused(
                "Expected a request of another kind. Received: weights, of "
                "which no average is made here. Pass --average-quorum."
            )
        await self._learning.check_run(edge_id, request.epoch)
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
        self._terms.check(request)
        if self._publisher is None:
            raise Refused(
                "Expected a request of another kind. Received: one for a new "
                "generation, which is not written here. Pass --publish."
            )
        await self._learning.check_run(edge_id, request.epoch)
        name = await self._learning.publish(self._publisher)
        logger.info(
            "published", extra=fields(weights_sha256=name, steps=self.steps)
        )
        return split_pb2.PublishReply(weights_sha256=name, steps=self.steps)

    def stop(self):
        """Takes no more batches; streams end after those in flight."""
        self._is_stopping = True

    async def close(self, drain_s=10.0):
        """Commits, and lets go of the ledger.

        Args:
            drain_s: Seconds for a further worker to take what is left.
        """
        self.stop()
        await self._learning.close(drain_s)

    @property
    def _idle_s(self):
        """Seconds without a batch before a commit."""
        return max(self._idle_commit_s, _IDLE_COMMITS * self._learning.commit_s)

    async def _train(self, requests, edge_id):
        arrivals = Arrivals(requests, self._window)
        try:
            told = 0
            while not self._is_stopping:
                request = await arrivals.next(self._idle_s)
                if request is END:
                    break
                if request is None:
                    done = await self._learning.commit(edge_id)
                    if done <= told:
                        continue
                    reply = split_pb2.TrainReply(committed=done)
                else:
                    outcome = await self._learning.learn(edge_id, request)
                    reply = self._reply(outcome, arrivals.waiting)
                told = reply.committed
                yield reply
                if reply.status.code:
                    return
            await self._learning.commit(edge_id)
        finally:
            arrivals.close()

    def _reply(self, outcome, queued):
        reply = split_pb2.TrainReply(
            committed=outcome.committed,
            expected_sequence=outcome.expected,
            loss=outcome.logs.get("loss", 0.0),
            accuracy=outcome.logs.get("accuracy", 0.0),
            queued=queued,
            idle_share=self._learning.idle_share,
        )
        if outcome.is_gap:
            reply.status.CopyFrom(_GAP)
        return reply
