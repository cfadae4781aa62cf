"""Sends what is in the journal, again and again until it is committed.

A thread of its own, so that training never waits for the network: whatever
happens there, batches gather in the journal.
"""

import contextlib
import dataclasses
import threading

import grpc

from protos import split_pb2, training
from protos.calling.connection import library_version
from protos.calling.retry import Backoff
from protos.errors import (
    CloudFailed,
    CloudUnavailable,
    DeadlinePassed,
    VersionMismatch,
    WireError,
    from_rpc_error,
    from_status,
)
from protos.feeding.window import Window
from protos.identity import PROTOCOL, mismatch, protocol_differences
from protos.options import PING_TIMEOUT_S, open_channel
from protos.security import check_tls

_SERVICE = split_pb2.DESCRIPTOR.services_by_name["Split"].full_name
_MAX_MESSAGE_BYTES = 1 << 30
_POLL_S = 0.2
#: How long an answer to a ping may take where a single batch takes that long.
_MAX_PING_TIMEOUT_S = 60.0
#: Batches that a ping may have to wait for.
_ON_THE_WAY = 4
#: How often in a row the cloud may break before training ends.
_MAX_BROKEN = 10


@dataclasses.dataclass
class CloudProgress:
    """What the cloud worker has told so far.

    Args:
        committed: All batches below are committed.
        loss: Loss of its last step.
        accuracy: Accuracy of its last exit in that step.
        queued: Batches that waited there.
        idle_share: Share of the time that it waited for batches.
        bytes_up: Bytes of all batches that were sent.
        bytes_down: Bytes of all replies.
        reconnects: Connections after the first one.
        is_connected: Whether there is a connection now.
    """

    committed: int = 0
    loss: float = 0.0
    accuracy: float = 0.0
    queued: int = 0
    idle_share: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    reconnects: int = -1
    is_connected: bool = False


class Sender:
    """Sends the records of a journal to a cloud worker.

    Args:
        journal: A `Journal` of serialized `TrainRequest`s without `epoch`.
        target: `"host:port"`.
        security: A `ClientSecurity`.
        agreement: What is trained, as `SegmentModel.agreement` says it.
        run: The number of this run of the edge.
        edge_id: What the edge calls itself; may be empty with a certificate.
        hello_timeout_s: Seconds to wait for the answer to a hello.
        average_sha256: Form of the weights that are to be averaged.
        backoff: A `Backoff`.
    """

    def __init__(
        self,
        journal,
        target,
        security,
        agreement,
        run,
        edge_id="",
        hello_timeout_s=10.0,
        backoff=None,
        average_sha256="",
    ):
        self._journal = journal
        self._target, self._security = target, security
        self._identity = training.identity_of(agreement)
        self._recipe = training.digest(agreement)
        self._run_number, self._edge_id = run, edge_id
        self._hello_timeout_s = hello_timeout_s
        self._average_sha256 = average_sha256
        self._backoff = backoff or Backoff(0.05, 2.0)
        self._stopping = threading.Event()
        self._ping_timeout_s = PING_TIMEOUT_S
        self._call = None
        self.progress = CloudProgress()
        #: The error that ended it, or `None`.
        self.error = None
        self.last_error = None
        # Later fields of a message count: so the run is said behind it.
        self._suffix = split_pb2.TrainRequest(epoch=run).SerializeToString()
        self._thread = threading.Thread(
            target=self._run, name="train-sender", daemon=True
        )

    def start(self):
        """Says hello, then sends from a thread.

        Returns:
            The `HelloReply`; `None` if there is no answer yet, for which the
            thread goes on to try.

        Raises:
            SplitError: If the cloud worker refuses.
        """
        hello = None
        with self._channel() as channel:
            try:
                hello = self._say_hello(channel)
            except CloudUnavailable as error:
                self.last_error = error
        self._thread.start()
        return hello

    @property
    def generation(self):
        """The name of what is trained, for requests."""
        return self._identity.generation

    @property
    def run(self):
        """The number of this run of the edge, for requests."""
        return self._run_number

    def ask(self, method, request, reply_type, timeout_s):
        """Makes a call of its own beside the stream.

        Args:
            method: Name of the method.
            request: Its request, a message.
            reply_type: The class of its reply.
            timeout_s: A function of the `HelloReply` that returns seconds to
                wait for the reply.

        Returns:
            The reply.

        Raises:
            SplitError: If there is none.
        """
        with self._channel() as channel:
            # Who was never met, or by a worker that has begun anew, is
            # nobody.
            hello = self._say_hello(channel)
            call = channel.unary_unary(
                f"/{_SERVICE}/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=reply_type.FromString,
            )
            try:
                reply = call(
                    request,
                    timeout=timeout_s(hello),
                    metadata=self._metadata(),
                )
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error
        self.progress.bytes_up += request.ByteSize()
        self.progress.bytes_down += reply.ByteSize()
        return reply

    def check(self):
        """Raises the error that ended the sending, if one did."""
        if self.error is not None:
            raise self.error

    def close(self):
        """Ends the thread; what is not acknowledged stays in the journal."""
        self._stopping.set()
        self._journal.wake()
        call = self._call
        if call is not None:
            call.cancel()
        if self._thread.is_alive():
            self._thread.join(10)

    def _run(self):
        failures = broken = 0
        while not (self._stopping.is_set() or self.error):
            before = self.progress.committed
            try:
                self._connect_and_send()
                failures = 0
            except (CloudUnavailable, CloudFailed) as error:
                self.last_error = error
                is_moving = self.progress.committed > before
                failures = 1 if is_moving else failures + 1
                is_broken = isinstance(error, CloudFailed)
                broken = broken + 1 if is_broken and not is_moving else 0
                if broken > _MAX_BROKEN:
                    self._end(error)
                    return
                wait_s = self._backoff.wait_s(failures)
                after_s = getattr(error, "retry_after_s", None) or 0.0
                self._stopping.wait(max(wait_s, min(after_s, 30.0)))
            except Exception as error:
                self._end(error)
                return
            finally:
                self.progress.is_connected = False

    def _end(self, error):
        if not self._stopping.is_set():
            self.error = error
            self._journal.wake()

    def _connect_and_send(self):
        with self._channel() as channel:
            hello = self._say_hello(channel)
            first = self._journal.first_sequence
            if first is not None and hello.expected_sequence < first:
                raise WireError(
                    f"Expected a cloud worker that has all batches below "
                    f"{first}. Received: one that expects batch "
                    f"{hello.expected_sequence}. Give it back its ledger, or "
                    "start both sides anew."
                )
            self.progress.reconnects += 1
            self.progress.is_connected = True
            method = channel.stream_stream(f"/{_SERVICE}/Train")
            ended, window = threading.Event(), Window()
            self._call = method(
                self._requests(hello.expected_sequence, ended, window),
                metadata=self._metadata(),
            )
            try:
                self._take_replies(self._call, window)
            except grpc.RpcError as error:
                self._suffer_slow_batches(window)
                raise _again(from_rpc_error(error)) from error
            finally:
                ended.set()
                self._call.cancel()
                self._call = None

    def _suffer_slow_batches(self, window):
        """Gives pings more time behind batches that are long on their way."""
        needed_s = self._ping_timeout_s
        if window.fastest_s is not None:
            needed_s = max(needed_s, _ON_THE_WAY * window.fastest_s)
        elif not window.is_empty:
            needed_s *= 2
        self._ping_timeout_s = min(needed_s, _MAX_PING_TIMEOUT_S)

    def _requests(self, sequence, ended, window):
        try:
            yield from self._records(sequence, ended, window)
        except (OSError, ValueError) as error:
            # To gRPC it would be a broken call, to be made again.
            self._end(error)
            call = self._call
            if call is not None:
                call.cancel()

    def _records(self, sequence, ended, window):
        def is_over():
            return ended.is_set() or self._stopping.is_set()

        while not is_over():
            if not self._journal.wait(sequence, _POLL_S):
                first = self._journal.first_sequence
                if first is not None and first > sequence:
                    # Committed already, by what was sent before.
                    sequence = first
                continue
            content = self._journal.read(sequence)
            sequence += 1
            if content is not None:
                content += self._suffix
                while not window.wait(len(content), _POLL_S):
                    if is_over():
                        return
                window.sent(sequence - 1, len(content))
                self.progress.bytes_up += len(content)
                yield content

    def _take_replies(self, replies, window):
        progress = self.progress
        for data in replies:
            progress.bytes_down += len(data)
            reply = split_pb2.TrainReply.FromString(data)
            if reply.committed > progress.committed:
                progress.committed = reply.committed
                self._journal.acknowledge(reply.committed)
            if reply.expected_sequence:
                window.answered(reply.expected_sequence)
                progress.loss = reply.loss or progress.loss
                progress.accuracy = reply.accuracy or progress.accuracy
                progress.queued = reply.queued
                progress.idle_share = reply.idle_share
            if reply.status.code:
                raise _again(from_status(reply.status))
        raise CloudUnavailable("The cloud worker has ended the stream.")

    def _metadata(self):
        found = self._security.metadata()
        if self._edge_id:
            found = (*found, (training.EDGE_ID, self._edge_id))
        return found or None

    @contextlib.contextmanager
    def _channel(self):
        credentials = self._security.credentials(self._target)
        channel = open_channel(
            self._target, credentials, _MAX_MESSAGE_BYTES, self._ping_timeout_s
        )
        try:
            yield channel
        finally:
            channel.close()

    def _say_hello(self, channel):
        method = channel.unary_unary(
            f"/{_SERVICE}/Hello",
            request_serializer=split_pb2.HelloRequest.SerializeToString,
            response_deserializer=split_pb2.HelloReply.FromString,
        )
        request = self._identity.hello(
            mode=split_pb2.TRAIN,
            library_version=library_version(),
            edge_id=self._edge_id,
            epoch=self._run_number,
            recipe_sha256=self._recipe,
            average_sha256=self._average_sha256,
        )
        try:
            hello = method(
                request,
                timeout=self._hello_timeout_s,
                metadata=self._metadata(),
            )
        except grpc.RpcError as error:
            failed = from_rpc_error(error)
            if isinstance(failed, CloudUnavailable) and not isinstance(
                failed, DeadlinePassed
            ):
                # A certificate that is refused looks like a dead network.
                with contextlib.suppress(CloudUnavailable):
                    check_tls(
                        self._target, self._security, self._hello_timeout_s
                    )
            raise failed from error
        theirs = (hello.protocol_major, hello.protocol_minor)
        found = protocol_differences(PROTOCOL, theirs)
        if found or not hello.accepted:
            raise mismatch(found or hello.differences)
        return hello


def _again(error):
    """A refusal of one batch, as a reason to say hello: that says why."""
    if isinstance(error, VersionMismatch):
        return CloudUnavailable(str(error))
    return error
