"""Keeps Serve's gRPC proxy on loopback, where it has neither TLS nor tokens.

Serve's own option for that exists for HTTP only; gRPC is bound to all
addresses. Serve calls `only` in the process of each proxy before that listens,
if the environment variable `HOOK` names it.
"""

import pathlib

HOOK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
HOST = "127.0.0.1"
_LISTENS = "0A"
# ::ffff: in front of an IPv4 address, and ::1.
_MAPPED, _ONE = "0000000000000000FFFF0000", f"{'0' * 24}01000000"


def only():
    """Binds the gRPC proxy of this process to loopback.

    Returns:
        An empty list: what Serve adds to its HTTP proxy.
    """
    from ray.serve._private import default_impl

    def add(server, address):
        port = address.rpartition(":")[2]
        server.add_insecure_port(f"{HOST}:{port}")

    default_impl.add_grpc_address = add
    return []


def is_open(port):
    """Whether a port of this machine listens on more than loopback."""
    hosts = []
    for name in ("tcp", "tcp6"):
        table = pathlib.Path("/proc/net", name)
        # Only on Linux, where Ray's clusters run.
        lines = table.read_text().splitlines()[1:] if table.exists() else ()
        for line in lines:
            _, local, _, state, *_ = line.split()
            host, _, found = local.partition(":")
            if state == _LISTENS and int(found, 16) == port:
                hosts.append(host)
    return not all(map(_is_loopback, hosts))


def _is_loopback(host):
    """Of an address as the kernel writes it: words in little-endian."""
    if host.startswith(_MAPPED):
        host = host.removeprefix(_MAPPED)
    return host == _ONE or (len(host) == 8 and host.endswith("7F"))
