"""Edges that are played: a stream each, in one event loop.

A played edge does what a real one does towards the cloud worker: it says hello
to it and keeps a stream of calls open, each with a deadline. It has no stages
and no threads, so that one process plays thousands. Edges share connections,
or a process would run out of them.
"""

import asyncio
import contextlib
import itertools
import time

import grpc
import numpy as np

from edge_worker.load.tally import Tally
from protos import split_pb2
from protos.errors import (
    CloudUnavailable,
    WireError,
    from_rpc_error,
    from_status,
)
from protos.identity import mismatch
from protos.options import channel_options

_SERVICE = split_pb2.DESCRIPTOR.services_by_name["Split"].full_name
_MAX_MESSAGE_BYTES = 64 << 20
_HELLO_S = 20.0
# Edges that open their stream at the same time.
_TOGETHER = 16
# Below what a cloud worker allows on a connection.
_MAX_STREAMS = 1000


class Players:
    """Plays edges against a cloud worker; for `async with`.

    Args:
        target: `"host:port"` of the worker.
        security: A `ClientSecurity`.
        recording: A `Recording`.
        deadline_s: Seconds that a call may take.
        connections: How many the edges share, at least; a connection carries
            no more than about a thousand streams.

    Raises:
        ValueError: If a certificate cannot be read.
    """

    def __init__(self, target, security, recording, deadline_s, connections=8):
        self._target, self._security = target, security
        self._recording, self._deadline_s = recording, deadline_s
        self._num_connections = connections
        self._credentials = security.credentials(target)
        self._numbers = itertools.count()
        self._stack = contextlib.AsyncExitStack()
        self._channels, self._edges = [], {}

    async def __aenter__(self):
        self._connect(self._num_connections)
        try:
            await self._hello()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_):
        for edge in self._edges.values():
            edge.close()
        await self._stack.aclose()

    async def play(self, traffic):
        """Makes the calls of some traffic, each at its time.

        Args:
            traffic: A `Traffic`.

        Returns:
            A `Tally` of all of them.
        """
        drawn = zip(*traffic.draw(), strict=True)
        tally, calls = Tally(self._deadline_s), set()
        started = tally.started
        for at, edge in drawn:
            left_s = started + at - time.monotonic()
            if left_s > 0:
                await asyncio.sleep(left_s)
            # A player that is behind plays other traffic than it should.
            tally.lags.append(max(0.0, time.monotonic() - started - at))
            call = asyncio.create_task(self._call(int(edge), tally))
            calls.add(call)
            call.add_done_callback(calls.discard)
        await asyncio.sleep(started + traffic.seconds - time.monotonic())
        await asyncio.gather(*calls)
        return tally

    async def keep_busy(self, callers, seconds, pause_s=0.0):
        """Lets callers call again and again, each once it has its answer.

        Args:
            callers: How many there are.
            seconds: For how long.
            pause_s: Mean of the time, drawn at random, between an answer and
                the next call. Without, all whose answers come together call
                together.

        Returns:
            A `Tally` of the calls that began in that time.
        """
        tally = Tally(self._deadline_s)
        end, rng = time.monotonic() + seconds, np.random.default_rng(0)

        async def call_again(edge):
            while time.monotonic() < end:
                await asyncio.sleep(pause_s and rng.exponential(pause_s))
                await self._call(edge, tally)

        await asyncio.gather(*map(call_again, range(callers)))
        return tally

    async def ask(self, edge):
        """One call.

        Args:
            edge: Number of the edge that makes it.

        Returns:
            The `InferReply` and how many seconds it took.

        Raises:
            SplitError, TimeoutError: If there is no answer in time.
        """
        number = next(self._numbers)
        player = self._edges.get(edge)
        if player is None or player.is_broken:
            channel = self._channels[edge % len(self._channels)]
            player = self._edges[edge] = _Edge(
                channel, self._security.metadata()
            )
        request_id = f"played-{edge}-{number}"
        content = self._recording.content(number, request_id, self._deadline_s)
        started = time.monotonic()
        reply = await player.ask(request_id, content, self._deadline_s)
        seconds = time.monotonic() - started
        if reply.status.code:
            raise from_status(reply.status)
        if list(reply.predictions.shape)[:1] != [self._recording.rows]:
            raise WireError(
                f"Expected answers for {self._recording.rows} rows. Received: "
                f"predictions of the shape {list(reply.predictions.shape)}."
            )
        return reply, seconds

    def _connect(self, number):
        """Makes connections until there are so many."""
        while len(self._channels) < number:
            channel = self._channel()
            self._channels.append(channel)
            self._stack.push_async_callback(channel.close)

    async def open(self, edges):
        """Has every edge make a call, which counts for nothing.

        A stream costs more to open than a call, and real edges keep theirs.

        Args:
            edges: How many there are.
        """
        self._connect(-(-edges // _MAX_STREAMS))
        ignored = Tally(self._deadline_s)
        for start in range(0, edges, _TOGETHER):
            some = range(start, min(edges, start + _TOGETHER))
            await asyncio.gather(*(self._call(x, ignored) for x in some))

    async def _call(self, edge, tally):
        try:
            reply, seconds = await self.ask(edge)
        except Exception as error:
            tally.failed(error)
        else:
            tally.replied(seconds, bool(reply.degraded))

    def _channel(self):
        options = channel_options(_MAX_MESSAGE_BYTES)
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._target, options)
        return grpc.aio.secure_channel(self._target, self._credentials, options)

    async def _hello(self):
        call = self._channels[0].unary_unary(
            f"/{_SERVICE}/Hello",
            request_serializer=split_pb2.HelloRequest.SerializeToString,
            response_deserializer=split_pb2.HelloReply.FromString,
        )
        try:
            reply = await call(
                self._recording.identity.hello(edge_id="played"),
                timeout=_HELLO_S,
                metadata=self._security.metadata() or None,
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        if not reply.accepted:
            raise mismatch(reply.differences)
        if self._recording.rows > reply.max_rows:
            raise WireError(
                f"Expected at most {reply.max_rows} samples in a call. "
                f"Received: {self._recording.rows}. Lower --rows, or raise "
                "the worker's --max-batch."
            )


class _Edge:
    """The stream of one edge."""

    def __init__(self, channel, metadata):
        self._waiting = {}
        self._requests = asyncio.Queue()
        self.is_broken = False
        self._call = channel.stream_stream(f"/{_SERVICE}/InferStream")(
            self._written(), metadata=metadata or None
        )
        self._reading = asyncio.create_task(self._read())

    async def ask(self, request_id, content, deadline_s):
        future = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = future
        self._requests.put_nowait(content)
        try:
            async with asyncio.timeout(deadline_s):
                return await future
        finally:
            self._waiting.pop(request_id, None)

    def close(self):
        self._reading.cancel()
        self._call.cancel()

    async def _written(self):
        while True:
            yield await self._requests.get()

    async def _read(self):
        error = CloudUnavailable("The cloud worker has ended the stream.")
        try:
            async for content in self._call:
                reply = split_pb2.InferReply.FromString(content)
                future = self._waiting.get(reply.request_id)
                if future is not None and not future.done():
                    future.set_result(reply)
        except grpc.RpcError as found:
            error = from_rpc_error(found)
        finally:
            self.is_broken = True
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(error)
