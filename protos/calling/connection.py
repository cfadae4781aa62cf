"""One connection to a worker that has said hello."""

import threading
import time
from importlib import metadata

import grpc

from protos import split_pb2
from protos.calling.stream import ReplyStream
from protos.errors import (
    CloudUnavailable,
    DeadlinePassed,
    WireError,
    from_rpc_error,
)
from protos.identity import PROTOCOL, mismatch, protocol_differences
from protos.options import open_channel
from protos.security import check_tls

_SERVICE = split_pb2.DESCRIPTOR.services_by_name["Split"].full_name
_MAX_GENERATION = 512


def library_version():
    """The version that is told to the peer; empty if it is not installed."""
    try:
        return metadata.version("keras-earlyexit")
    except metadata.PackageNotFoundError:
        return ""


class Connection:
    """A channel whose peer has the right model, and the stream on it.

    Made by `connect`. It ends when the stream breaks: the next one says hello
    again, since another process may answer then.

    Args:
        channel: A `grpc.Channel`.
        security: A `ClientSecurity`.
        hello: The `HelloReply` of the peer.
        round_trip_s: Seconds that the hello took.
        on_break: Called with this connection when the stream has broken.
    """

    def __init__(self, channel, security, hello, round_trip_s, on_break):
        self._channel = channel
        self.hello = hello
        self.round_trip_s = round_trip_s
        self._lock = threading.Lock()
        self._in_use = 0
        self._is_retired = False
        self._stream = ReplyStream(
            channel.stream_stream(f"/{_SERVICE}/InferStream"),
            security.metadata(),
            on_break=lambda: on_break(self),
        )

    def send(self, request_id, content):
        """As `ReplyStream.send`; `done` has to follow for each."""
        with self._lock:
            self._in_use += 1
        return self._stream.send(request_id, content)

    def done(self, request_id):
        """The caller has the reply, or wants it no longer."""
        self._stream.forget(request_id)
        with self._lock:
            self._in_use -= 1
            closes = self._is_retired and not self._in_use
        if closes:
            self._close_aside()

    def silent_s(self):
        """Seconds for which replies are owed and none has come."""
        return self._stream.silent_s()

    def retire(self):
        """Closes the connection once nobody waits for a reply on it."""
        with self._lock:
            closes = not (self._is_retired or self._in_use)
            self._is_retired = True
        if closes:
            self._close_aside()

    def _close_aside(self):
        # gRPC may take its time, and callers have a deadline.
        threading.Thread(
            target=self.close, name="split-closing", daemon=True
        ).start()

    def close(self):
        """Closes the connection; who waits for a reply waits no longer."""
        self._stream.close()
        self._channel.close()


def connect(
    target, security, identity, options, timeout_s, on_break=lambda _: None
):
    """Opens a channel and says hello.

    Args:
        target: `"host:port"`.
        security: A `ClientSecurity`.
        identity: The `Identity` that the peer has to have.
        options: The link's `LinkOptions`.
        timeout_s: Seconds for the connection and the hello.
        on_break: As for `Connection`.

    Returns:
        A `Connection`.

    Raises:
        VersionMismatch: If the peer has no part of the same model.
        NotAllowed: If a certificate, a token or an id is wrong.
        WireError: If the peer's hello cannot be right.
        CloudUnavailable: If there is no answer.
    """
    credentials = security.credentials(target)
    channel = open_channel(target, credentials, options.max_message_bytes)
    try:
        started = time.monotonic()
        hello = _say_hello(channel, security, identity, options, timeout_s)
        round_trip_s = time.monotonic() - started
        _check_hello(hello)
    except CloudUnavailable as error:
        channel.close()
        if not isinstance(error, DeadlinePassed):
            # It says what gRPC does not, and raises itself unless the peer is
            # there by now.
            check_tls(target, security, timeout_s)
        raise
    except BaseException:
        channel.close()
        raise
    return Connection(channel, security, hello, round_trip_s, on_break)


def _say_hello(channel, security, identity, options, timeout_s):
    method = channel.unary_unary(
        f"/{_SERVICE}/Hello",
        request_serializer=split_pb2.HelloRequest.SerializeToString,
        response_deserializer=split_pb2.HelloReply.FromString,
    )
    request = identity.hello(
        library_version=library_version(), edge_id=options.edge_id
    )
    try:
        return method(
            request,
            timeout=timeout_s,
            metadata=security.metadata() or None,
        )
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


def _check_hello(hello):
    theirs = (hello.protocol_major, hello.protocol_minor)
    found = protocol_differences(PROTOCOL, theirs)
    if found or not hello.accepted:
        raise mismatch(found or hello.differences)
    if not hello.max_rows or not 0 < len(hello.generation) <= _MAX_GENERATION:
        raise WireError(
            "Expected a hello with a generation and a number of rows. "
            f"Received: a generation of {len(hello.generation)} characters "
            f"and max_rows={hello.max_rows}. Update the cloud worker."
        )
