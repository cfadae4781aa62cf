"""The proxy that tests break links with."""

import contextlib
import socket
import threading
import time

import pytest
from proxy import DOWN, UP, Proxy
from waiting import poll


@pytest.fixture
def echo():
    """Address of a server that sends back what it gets."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve(connection):
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(
                    target=serve, args=(listening.accept()[0],), daemon=True
                ).start()

    threading.Thread(target=accept, daemon=True).start()
    yield "127.0.0.1:%d" % listening.getsockname()[1]
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()


@pytest.fixture
def proxy(echo):
    with Proxy(echo, record=True) as proxy:
        yield proxy


@contextlib.contextmanager
def connected(proxy, timeout_s=2.0):
    host, _, port = proxy.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout_s) as connection:
        yield connection


def talk(connection, data=b"hello"):
    """Sends, and receives as much; returns it and the seconds it took."""
    started, received = time.monotonic(), b""
    connection.sendall(data)
    while len(received) < len(data):
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError("closed")
        received += piece
    return received, time.monotonic() - started


def test_forwards_and_records(proxy):
    with connected(proxy) as connection:
        assert talk(connection)[0] == b"hello"
    assert proxy.recorded == {UP: b"hello", DOWN: b"hello"}
    assert proxy.num_connections == 1


def test_latency_of_each_direction(proxy):
    with connected(proxy) as connection:
        proxy.set(UP, latency_s=0.05)
        assert 0.05 <= talk(connection)[1] < 0.5
        proxy.set(latency_s=0.05)
        assert 0.1 <= talk(connection)[1] < 0.5
        proxy.heal()
        assert min(talk(connection)[1] for _ in range(5)) < 0.05


def test_rate(proxy):
    proxy.set(UP, bytes_per_s=1_000_000)
    with connected(proxy) as connection:
        received, seconds = talk(connection, bytes(200_000))
    assert len(received) == 200_000
    assert 0.2 <= seconds < 2


def test_slices_change_nothing(proxy):
    proxy.set(slice_bytes=7)
    data = bytes(range(256)) * 4
    with connected(proxy) as connection:
        assert talk(connection, data)[0] == data


@pytest.mark.parametrize("direction", [UP, DOWN])
def test_blackhole_swallows_one_way_and_for_ever(proxy, direction):
    with connected(proxy, 0.2) as connection:
        proxy.set(direction, blackhole=True)
        with pytest.raises(TimeoutError):
            talk(connection)
        proxy.heal()
        with pytest.raises(TimeoutError):
            talk(connection)
    with connected(proxy) as connection:
        assert talk(connection)[0] == b"hello"


def test_cut_after_some_bytes(proxy):
    proxy.set(DOWN, cut_after=3)
    with connected(proxy) as connection:
        assert talk(connection, b"abc")[0] == b"abc"
        with pytest.raises(ConnectionError):
            talk(connection, b"d")


def test_reset_down_and_up_again(proxy):
    with connected(proxy) as connection:
        talk(connection)
        proxy.reset()
        with pytest.raises(ConnectionError):
            talk(connection)
    proxy.down()
    with pytest.raises(ConnectionError):
        with connected(proxy) as connection:
            talk(connection)
    proxy.up()
    with connected(proxy) as connection:
        assert talk(connection)[0] == b"hello"


def test_poll_has_an_end():
    assert poll(lambda: True) < 0.1
    with pytest.raises(TimeoutError):
        poll(lambda: False, within_s=0.05)
