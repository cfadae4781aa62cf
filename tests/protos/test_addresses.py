"""Addresses, and whether they are on this machine."""

import pytest

from protos.addresses import is_loopback, split_address


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("localhost:1", ("localhost", 1)),
        ("cloud.example.org:50051", ("cloud.example.org", 50051)),
        ("10.0.0.1:0", ("10.0.0.1", 0)),
        ("[2001:db8::1]:65535", ("2001:db8::1", 65535)),
    ],
)
def test_split(address, expected):
    assert split_address(address) == expected


@pytest.mark.parametrize(
    "address",
    ["", "host", "host:", ":1", "::1", "[]:1", "h:65536", "h:-1", "h:a", "h:²"]
    + ["dns:///host:1", "a b:1", "unix:/tmp/x:1", "[h]:1", None],
)
def test_refused(address):
    with pytest.raises(ValueError, match="host:port.*Received"):
        split_address(address)


def test_loopback():
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert is_loopback(host)
    for host in ("0.0.0.0", "10.0.0.1", "::", "example.org", "localhost.x"):
        assert not is_loopback(host)
