"""Addresses of workers: `host:port`."""

import ipaddress
import socket


def split_address(address):
    """Host and port of an address.

    Args:
        address: `"host:port"`, an IPv6 address in brackets.

    Returns:
        The host, without brackets, and the port as an int.

    Raises:
        ValueError: If it is no such address.

    Example:

    >>> split_address("[::1]:50051")
    ('::1', 50051)
    """
    host, _, port = str(address).rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if is_bracketed else host
    if (
        not bare
        or not (port.isdecimal() and port.isascii() and int(port) < 1 << 16)
        or (":" in bare) != is_bracketed
        or set("/[] ") & set(bare)
    ):
        raise ValueError(
            "Expected an address as host:port, a port from 0 to 65535. "
            f"Received: {address!r} (of type {type(address).__name__}). Write "
            "it like cloud.example.org:50051 or [::1]:50051."
        )
    return bare, int(port)


def is_loopback(host):
    """Whether what is sent to a host stays on this machine.

    Args:
        host: An IP address, or `localhost`. Another name may mean another
            machine tomorrow and does not count.

    Returns:
        A bool.
    """
    hosts = [host]
    if host == "localhost":
        try:
            found = socket.getaddrinfo(host, None)
        except OSError:
            return False
        hosts = [entry[4][0] for entry in found]
    try:
        return all(ipaddress.ip_address(host).is_loopback for host in hosts)
    except ValueError:
        return False
