"""Settings that do not go together, tokens, and ids of edges."""

import ssl

import grpc
import pytest
from cryptography.hazmat.primitives import serialization

from protos.errors import NotAllowed
from protos.security import (
    ClientSecurity,
    ServerSecurity,
    edge_id_of,
    read_tokens,
)

TOKEN = "0123456789abcdef"


@pytest.mark.parametrize(
    "half",
    [
        {"cert": "a"},
        {"key": "a"},
        {"insecure": True, "ca": "a"},
        {"insecure": True, "cert": "a", "key": "b"},
        {"token": ""},
        {"token": "two words"},
        {"token": "line\n"},
        {"token": b"bytes"},
    ],
)
def test_half_a_client_is_refused(half):
    with pytest.raises(ValueError, match="Expected.*Received"):
        ClientSecurity(**half)


@pytest.mark.parametrize(
    "half",
    [
        {},
        {"cert": "a"},
        {"key": "a", "client_ca": "c"},
        {"client_ca": "c"},
        {"cert": "a", "key": "b"},
        {"insecure": True, "cert": "a", "key": "b"},
        {"insecure": True, "client_ca": "c"},
        {"insecure": True, "tokens": ("",)},
    ],
)
def test_half_a_server_is_refused(half):
    with pytest.raises(ValueError, match="Expected.*Received"):
        ServerSecurity(**half)


def test_plain_text_stays_on_this_machine():
    for security in (ClientSecurity(insecure=True), ServerSecurity(insecure=1)):
        for address in ("127.0.0.1:1", "localhost:1", "[::1]:1"):
            assert security.credentials(address) is None
        for address in ("0.0.0.0:1", "[::]:1", "cloud.example.org:1"):
            with pytest.raises(ValueError, match="loopback.*certs"):
                security.credentials(address)


def test_credentials_of_good_files(pki):
    mine = {"cert": pki / "edge.pem", "key": pki / "edge.key"}
    client = ClientSecurity(ca=pki / "ca.pem", **mine)
    credentials = client.credentials("cloud:1")
    assert isinstance(credentials, grpc.ChannelCredentials)
    assert isinstance(client.ssl_context(), ssl.SSLContext)
    server = ServerSecurity(client_ca=pki / "ca.pem", **mine)
    credentials = server.credentials("0.0.0.0:1")
    assert isinstance(credentials, grpc.ServerCredentials)
    assert ClientSecurity().credentials("cloud:1") is not None


def locked(key):
    """The same key, encrypted."""
    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


@pytest.mark.parametrize(
    "change",
    [
        {"ca": "missing.pem"},
        {"ca": "edge.key"},
        {"cert": "missing.pem"},
        {"cert": "other_edge.pem"},
        {"key": "edge.pem"},
        {"key": "locked.key"},
        {"key": "."},
    ],
)
def test_files_that_are_not_what_they_should_be(pki, change):
    (pki / "locked.key").write_bytes(locked((pki / "edge.key").read_bytes()))
    names = {"ca": "ca.pem", "cert": "edge.pem", "key": "edge.key", **change}
    paths = {name: pki / file for name, file in names.items()}
    with pytest.raises(ValueError, match="Expected.*Received.*[.]$"):
        ClientSecurity(**paths).credentials("cloud:1")
    paths["client_ca"] = paths.pop("ca")
    with pytest.raises(ValueError, match="Expected.*Received.*[.]$"):
        ServerSecurity(**paths).credentials("0.0.0.0:1")


def test_no_token_in_a_representation():
    client = ClientSecurity(token=TOKEN, insecure=True)
    server = ServerSecurity(tokens=(TOKEN,), insecure=True)
    assert TOKEN not in repr(client) + repr(server)


def test_tokens_let_in(tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"# of the garden\n\n  {TOKEN}  \r\nanother-one\n")
    assert read_tokens(file) == (TOKEN, "another-one")
    server = ServerSecurity(tokens=["third"], token_file=file, insecure=True)
    for token in ("third", TOKEN, "another-one"):
        client = ClientSecurity(token=token, insecure=True)
        server.check_token(client.metadata())


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", ""),),
        (("authorization", TOKEN),),
        (("authorization", f"bearer {TOKEN}"),),
        (("authorization", f"Bearer {TOKEN}x"),),
        (("authorization", "Bearer é"),),
        (("authorization-bin", f"Bearer {TOKEN}".encode()),),
    ],
)
def test_anything_else_does_not(metadata):
    server = ServerSecurity(tokens=(TOKEN,), insecure=True)
    with pytest.raises(NotAllowed, match="token") as caught:
        server.check_token(metadata)
    assert TOKEN not in str(caught.value) and not caught.value.is_known


def test_without_tokens_nobody_needs_one():
    assert ClientSecurity(insecure=True).metadata() == ()
    ServerSecurity(insecure=True).check_token(())


@pytest.mark.parametrize("text", ["", "# none\n\n", "two words\n", "é\n"])
def test_files_without_tokens(tmp_path, text):
    file = tmp_path / "tokens"
    file.write_text(text)
    with pytest.raises(ValueError, match="Expected.*openssl rand"):
        read_tokens(file)


def test_a_certificate_says_who_an_edge_is():
    context = {"x509_common_name": [b"edge-1"]}
    assert edge_id_of(context, "") == "edge-1"
    assert edge_id_of(context, "edge-1") == "edge-1"
    assert edge_id_of({}, "edge.2_b") == "edge.2_b"
    with pytest.raises(NotAllowed, match="'edge-1'.*'edge-2'") as caught:
        edge_id_of(context, "edge-2")
    assert caught.value.is_known


@pytest.mark.parametrize("edge_id", ["", "-x", "a b", "a\n", "a/b", "x" * 65])
def test_ids_that_are_none(edge_id):
    with pytest.raises(NotAllowed, match="edge id"):
        edge_id_of({}, edge_id)
    if edge_id:
        with pytest.raises(NotAllowed, match="edge id"):
            edge_id_of({"x509_common_name": [edge_id.encode()]}, "")
