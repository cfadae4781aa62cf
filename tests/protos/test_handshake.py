"""Certificates that are wrong are said to be, at once; so with real servers."""

import contextlib
import socket
import ssl
import threading
import time
from concurrent import futures

import grpc
import pytest

from protos import split_pb2, split_pb2_grpc
from protos.errors import (
    CloudUnavailable,
    NotAllowed,
    Refused,
    from_rpc_error,
    status_of,
)
from protos.handshake import read_certificate
from protos.options import open_channel, server_options
from protos.security import (
    ClientSecurity,
    ServerSecurity,
    check_tls,
    edge_id_of,
)

BYTES = 1 << 20


class Greeting(split_pb2_grpc.SplitServicer):
    """Says hello to those whose id is their certificate's."""

    def __init__(self, security):
        self._security = security

    def Hello(self, request, context):
        try:
            self._security.check_token(context.invocation_metadata())
            edge_id_of(context.auth_context(), request.edge_id)
        except NotAllowed as error:
            context.abort(*status_of(error))
        return split_pb2.HelloReply(accepted=True)


@contextlib.contextmanager
def serving(security):
    server = grpc.server(
        futures.ThreadPoolExecutor(2), options=server_options(BYTES, 10)
    )
    split_pb2_grpc.add_SplitServicer_to_server(Greeting(security), server)
    credentials = security.credentials("127.0.0.1:0")
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


@pytest.fixture(scope="module")
def secured(pki):
    files = {"cert": pki / "cloud.pem", "key": pki / "cloud.key"}
    with serving(ServerSecurity(client_ca=pki / "ca.pem", **files)) as target:
        yield target


@pytest.fixture(scope="module")
def plain():
    with serving(ServerSecurity(insecure=True)) as target:
        yield target


def client(pki, cert="edge", ca="ca", **options):
    if cert is not None:
        options |= {"cert": pki / f"{cert}.pem", "key": pki / f"{cert}.key"}
    return ClientSecurity(ca=pki / f"{ca}.pem", **options)


def say_hello(target, security, edge_id="edge-1"):
    """Connects as an edge does when it starts."""
    check_tls(target, security, timeout_s=5)
    credentials = security.credentials(target)
    with open_channel(target, credentials, BYTES) as channel:
        try:
            return split_pb2_grpc.SplitStub(channel).Hello(
                split_pb2.HelloRequest(edge_id=edge_id),
                timeout=5,
                metadata=security.metadata(),
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error


@pytest.fixture
def within():
    """Nobody waits longer for a clear answer than five seconds."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 5


def test_a_good_certificate(pki, secured, within):
    assert say_hello(secured, client(pki)).accepted
    port = secured.rpartition(":")[2]
    assert say_hello(f"localhost:{port}", client(pki), "").accepted


def test_no_certificate(pki, secured, within):
    with pytest.raises(NotAllowed, match="asks for a client certificate"):
        say_hello(secured, client(pki, cert=None))


def test_a_certificate_of_another_authority(pki, secured, within):
    with pytest.raises(NotAllowed, match="does not trust"):
        say_hello(secured, client(pki, cert="other_edge"))


def test_a_certificate_that_has_expired(pki, secured, within):
    with pytest.raises(NotAllowed, match="expired on 20.*Make a new one"):
        say_hello(secured, client(pki, cert="expired"))


def test_plain_text_to_a_server_with_tls(secured, within):
    with pytest.raises(NotAllowed, match="without TLS.*one that uses it"):
        say_hello(secured, ClientSecurity(insecure=True))


def test_the_id_of_another(pki, secured, within):
    with pytest.raises(NotAllowed, match="PERMISSION_DENIED") as caught:
        say_hello(secured, client(pki), "edge-2")
    assert caught.value.is_known


def test_tls_to_a_server_without(pki, plain, within):
    with pytest.raises(NotAllowed, match="Expected a server with TLS"):
        say_hello(plain, client(pki))


def test_plain_text_on_both_sides(plain, within):
    assert say_hello(plain, ClientSecurity(insecure=True)).accepted


@pytest.mark.parametrize("ca", ["other_ca", None])
def test_a_server_of_another_authority(pki, secured, ca, within):
    mine = client(pki, ca=ca) if ca else ClientSecurity()
    with pytest.raises(NotAllowed, match="not trusted here"):
        say_hello(secured, mine)


@pytest.mark.parametrize(
    ("cert", "reason"),
    [("elsewhere", "another IP address"), ("expired_cloud", "has expired")],
)
def test_a_server_with_a_wrong_certificate(pki, cert, reason, within):
    security = ServerSecurity(
        cert=pki / f"{cert}.pem", key=pki / f"{cert}.key", tokens=("x",)
    )
    with serving(security) as target:
        with pytest.raises(NotAllowed, match=reason):
            say_hello(target, client(pki))


def test_a_server_of_another_name(pki, within):
    files = {"cert": pki / "elsewhere.pem", "key": pki / "elsewhere.key"}
    with serving(ServerSecurity(tokens=("x",), **files)) as target:
        port = target.rpartition(":")[2]
        with pytest.raises(NotAllowed, match="another host"):
            say_hello(f"localhost:{port}", client(pki))


def test_tokens_over_tls(pki, within):
    files = {"cert": pki / "cloud.pem", "key": pki / "cloud.key"}
    with serving(ServerSecurity(tokens=("right",), **files)) as target:
        mine = client(pki, cert=None, token="right")
        assert say_hello(target, mine).accepted
        with pytest.raises(NotAllowed, match="UNAUTHENTICATED") as caught:
            say_hello(target, client(pki, cert=None, token="wrong"))
        assert not caught.value.is_known


@contextlib.contextmanager
def answering(data, closes=True):
    """A server that sends the same bytes to everybody."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = threading.Event()

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        if data:
                            connection.recv(100)
                            connection.sendall(data)
                        if not closes:
                            done.wait()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            done.set()
            # Wakes the thread up, which closing alone does not.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def securities(pki):
    return (ClientSecurity(insecure=True), client(pki))


def test_nobody_there_is_no_refusal(pki, within):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = f"127.0.0.1:{listener.getsockname()[1]}"
    for security in securities(pki):
        with pytest.raises(CloudUnavailable, match="refused"):
            check_tls(target, security, timeout_s=1)


def test_a_proxy_before_nobody_is_no_refusal(pki, within):
    with answering(b"") as target:
        for security in securities(pki):
            with pytest.raises(CloudUnavailable):
                check_tls(target, security, timeout_s=1)


def test_silence_is_no_refusal(pki, within):
    with answering(b"", closes=False) as target:
        with pytest.raises(CloudUnavailable, match="timed out"):
            check_tls(target, client(pki), timeout_s=0.2)
    with answering(b"", closes=False) as target:
        with pytest.raises(CloudUnavailable, match="timed out"):
            check_tls(target, ClientSecurity(insecure=True), timeout_s=0.2)


def test_another_kind_of_server(within):
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as target:
        with pytest.raises(Refused, match="not HTTP/2"):
            check_tls(target, ClientSecurity(insecure=True), timeout_s=1)


@contextlib.contextmanager
def shaking_hands(pki, verify_mode, *, ends):
    """A TLS server without gRPC that closes every connection.

    It is gone after the first one if `ends`.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pki / "cloud.pem", pki / "cloud.key")
    context.load_verify_locations(pki / "ca.pem")
    context.verify_mode = verify_mode
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                if ends:
                    listener.close()
                with connection, contextlib.suppress(ssl.SSLError):
                    context.wrap_socket(connection, server_side=True).close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        # Wakes the thread up, which closing alone does not.
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def test_a_worker_that_ends_meanwhile_is_no_refusal(pki, within):
    with shaking_hands(pki, ssl.CERT_NONE, ends=True) as target:
        with pytest.raises(CloudUnavailable, match="refused"):
            check_tls(target, client(pki), timeout_s=1)


@pytest.mark.parametrize(
    ("cert", "reason"),
    [(None, "asks for a client"), ("other_edge", "does not trust")]
    + [("expired", "which expired on")],
)
def test_a_server_that_says_why_it_refuses(pki, cert, reason, within):
    with shaking_hands(pki, ssl.CERT_REQUIRED, ends=False) as target:
        with pytest.raises(NotAllowed, match=reason):
            check_tls(target, client(pki, cert=cert), timeout_s=1)


def test_what_a_certificate_says(pki):
    name, end = read_certificate(pki / "edge.pem")
    assert name == "edge-1" and end.tzinfo is not None
    with pytest.raises(ValueError):
        read_certificate(pki / "edge.key")
