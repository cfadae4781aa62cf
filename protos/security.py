"""Who may talk to whom: certificates, tokens and the ids of edges.

Everything is refused until it is allowed: a connection without TLS exists on
loopback addresses only, and a server asks for a certificate or for a token.
"""

import dataclasses
import hmac
import pathlib
import re
import ssl

import grpc

from protos.addresses import is_loopback, split_address
from protos.errors import NotAllowed
from protos.handshake import check_tls as check_tls

_EDGE_ID = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# What may stand in a header.
_TOKEN = re.compile("[!-~]{1,4096}")
_MAX_TOKEN_FILE = 1 << 20
_MAX_PEM = 1 << 20


@dataclasses.dataclass(frozen=True)
class ClientSecurity:
    """How an edge shows who it is, and whom it believes.

    Args:
        ca: PEM file of the authority that signed the cloud worker's
            certificate; `None` for those that this system knows.
        cert: PEM file of the edge's own certificate.
        key: PEM file of its key.
        token: Token to send with every call.
        insecure: `True` for plain text, to loopback addresses only.

    Raises:
        ValueError: If these do not go together.
    """

    ca: str | pathlib.Path | None = None
    cert: str | pathlib.Path | None = None
    key: str | pathlib.Path | None = None
    token: str | None = dataclasses.field(default=None, repr=False)
    insecure: bool = False

    def __post_init__(self):
        _refuse_half(self, ("cert", "key"), ("ca", "cert", "key"))
        if self.token is not None:
            _check_token(self.token, "token")

    def ssl_context(self):
        """The same for Python's own TLS; `None` for plain text.

        Raises:
            ValueError: If a file cannot be read, or is not what it should be.
        """
        if self.insecure:
            return None
        ca = None if self.ca is None else _read(self.ca).decode("latin-1")
        try:
            context = ssl.create_default_context(cadata=ca)
        except ssl.SSLError as error:
            raise _not_pem(f"a certificate in {self.ca}", error) from error
        # gRPC's servers talk to nobody who does not offer this.
        context.set_alpn_protocols(["h2"])
        _load_chain(context, self.cert, self.key)
        return context

    def credentials(self, target):
        """Credentials for a channel.

        Args:
            target: `"host:port"`.

        Returns:
            `grpc.ChannelCredentials`; `None` for plain text.

        Raises:
            ValueError: If a file cannot be read or is not what it should be,
                or if plain text would leave this machine.
        """
        if self.insecure:
            _refuse_plain_text(target)
            return None
        # It says what is wrong with the files, which gRPC does not.
        self.ssl_context()
        return grpc.ssl_channel_credentials(
            root_certificates=None if self.ca is None else _read(self.ca),
            private_key=None if self.key is None else _read(self.key),
            certificate_chain=None if self.cert is None else _read(self.cert),
        )

    def metadata(self):
        """Metadata that goes with every call, a tuple of pairs."""
        if self.token is None:
            return ()
        return (("authorization", f"Bearer {self.token}"),)


@dataclasses.dataclass(frozen=True)
class ServerSecurity:
    """How a cloud worker shows who it is, and whom it lets in.

    Args:
        cert: PEM file of its certificate.
        key: PEM file of its key.
        client_ca: PEM file of the authority whose certificates let edges in.
        tokens: Tokens that let edges in.
        token_file: File with more of them, see `read_tokens`.
        insecure: `True` for plain text, on loopback addresses only.

    Where there are both a `client_ca` and tokens, an edge needs both.

    Raises:
        ValueError: If these do not go together, or if they let everybody in.
    """

    cert: str | pathlib.Path | None = None
    key: str | pathlib.Path | None = None
    client_ca: str | pathlib.Path | None = None
    tokens: tuple = dataclasses.field(default=(), repr=False)
    token_file: str | pathlib.Path | None = None
    insecure: bool = False

    def __post_init__(self):
        _refuse_half(self, ("cert", "key"), ("cert", "key", "client_ca"))
        if not self.insecure and self.cert is None:
            raise ValueError(
                "Expected a certificate and a key for the server. Received: "
                "cert=None. Pass cert and key, which `keras-earlyexit certs` "
                "makes for a trial, or insecure=True on a loopback address."
            )
        tokens = tuple(self.tokens)
        if self.token_file is not None:
            tokens += read_tokens(self.token_file)
        for token in tokens:
            _check_token(token, "tokens")
        if not (self.insecure or self.client_ca or tokens):
            raise ValueError(
                "Expected a way to know edges. Received: client_ca=None and "
                "no tokens, which would let everybody in. Pass client_ca, "
                "token_file, or both."
            )
        object.__setattr__(self, "tokens", tokens)

    def credentials(self, address):
        """Credentials for a port.

        Args:
            address: The `"host:port"` to listen on.

        Returns:
            `grpc.ServerCredentials`; `None` for plain text.

        Raises:
            ValueError: If a file cannot be read or is not what it should be,
                or if other machines could send plain text.
        """
        if self.insecure:
            _refuse_plain_text(address)
            return None
        # It says what is wrong with the files, which gRPC does not.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _load_chain(context, self.cert, self.key)
        client_ca = None
        if self.client_ca is not None:
            client_ca = _read(self.client_ca)
            try:
                context.load_verify_locations(
                    cadata=client_ca.decode("latin-1")
                )
            except ssl.SSLError as error:
                where = f"a certificate in {self.client_ca}"
                raise _not_pem(where, error) from error
        return grpc.ssl_server_credentials(
            [(_read(self.key), _read(self.cert))],
            root_certificates=client_ca,
            require_client_auth=client_ca is not None,
        )

    def check_token(self, metadata):
        """Lets a call pass or raises.

        Args:
            metadata: The pairs that came with the call.

        Raises:
            NotAllowed: If tokens are needed and none of them came.
        """
        if not self.tokens:
            return
        sent = b""
        for key, value in metadata:
            if key == "authorization" and isinstance(value, str):
                sent = value.encode()
        # All are compared, each in constant time.
        hits = [
            hmac.compare_digest(sent, f"Bearer {token}".encode())
            for token in self.tokens
        ]
        if not any(hits):
            raise NotAllowed(
                "Expected a known token in the metadata `authorization`. "
                f"Received: {'another' if sent else 'none'}. Start the edge "
                "worker with a token that this server was given."
            )


def edge_id_of(auth_context, claimed):
    """The id of the edge that makes a call.

    Args:
        auth_context: What gRPC's `context.auth_context()` returns.
        claimed: The id that the edge gives itself; may be empty where it has
            a certificate.

    Returns:
        The common name of its certificate, or else what it says.

    Raises:
        NotAllowed: If the two differ, or if the id is not one.
    """
    names = auth_context.get("x509_common_name") or ()
    certified = b"".join(names).decode("utf-8", "replace")
    edge_id = certified or claimed
    if not _EDGE_ID.fullmatch(edge_id):
        raise NotAllowed(
            "Expected an edge id of 1 to 64 letters, digits, dots, dashes "
            "and underscores, a letter or digit first. Received: "
            f"{edge_id[:64]!r}. Give the edge worker such an id, or a "
            "certificate with it as common name.",
            is_known=bool(certified),
        )
    if certified and claimed and certified != claimed:
        raise NotAllowed(
            f"Expected the edge id {certified!r} of the certificate. "
            f"Received: {claimed[:64]!r}. Leave the edge worker's id out, or "
            "use the certificate that belongs to it.",
            is_known=True,
        )
    return edge_id


def read_tokens(path):
    """The tokens of a file: one a line; empty lines and `#` do not count.

    Args:
        path: The file.

    Returns:
        A tuple of str with at least one token.

    Raises:
        ValueError: If it cannot be read, or if there is none in it.
    """
    text = _read(path, _MAX_TOKEN_FILE).decode("utf-8", "replace")
    lines = (line.strip() for line in text.splitlines())
    tokens = tuple(x for x in lines if x and not x.startswith("#"))
    if not tokens:
        raise ValueError(
            f"Expected at least one token in {path}. Received: none. Write "
            "one on a line of its own, such as the output of "
            "`openssl rand -hex 32`."
        )
    for token in tokens:
        _check_token(token, f"tokens in {path}")
    return tokens


def _check_token(token, what):
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        # Not what it is: that would be in somebody's log.
        size = len(token) if isinstance(token, str) else 0
        raise ValueError(
            f"Expected {what} of 1 to 4096 visible ASCII characters. "
            f"Received: {size} characters (of type {type(token).__name__}), "
            "or others. Use the output of `openssl rand -hex 32`."
        )


def _refuse_half(security, together, not_insecure):
    """Refuses settings that only make sense with others."""
    given = [getattr(security, name) is not None for name in together]
    if any(given) != all(given):
        raise ValueError(
            f"Expected {' and '.join(together)} together. Received: "
            f"{together[given.index(True)]} alone. Pass both or neither."
        )
    if not security.insecure:
        return
    for name in not_insecure:
        if getattr(security, name) is not None:
            raise ValueError(
                "Expected no certificates with insecure=True. Received: "
                f"{name}={str(getattr(security, name))!r}. Leave one out."
            )


def _refuse_plain_text(address):
    host, _ = split_address(address)
    if not is_loopback(host):
        raise ValueError(
            "Expected a loopback address, such as 127.0.0.1, for a connection "
            f"without TLS. Received: {address!r}. Use certificates, which "
            "`keras-earlyexit certs` makes for a trial."
        )


def _load_chain(context, cert, key):
    if cert is None:
        return
    # Read first, for an error that names the file which is not there.
    for path in (cert, key):
        _read(path)
    try:
        # Whoever has no terminal would wait for a password for ever.
        context.load_cert_chain(cert, key, password=_no_password)
    except ssl.SSLError as error:
        what = f"a certificate in {cert} and its key in {key}"
        raise _not_pem(what, error) from error


def _no_password():
    raise ValueError(
        "Expected a key that is not encrypted. Received: one that asks for a "
        "password. Write it without: openssl pkey -in KEY -out NEW_KEY."
    )


def _not_pem(expected, error):
    return ValueError(
        f"Expected {expected}, in PEM. Received: something else "
        f"({error.reason or error}). Make them again, for a trial with "
        "`keras-earlyexit certs`."
    )


def _read(path, at_most=_MAX_PEM):
    try:
        with open(path, "rb") as file:
            content = file.read(at_most + 1)
    except OSError as error:
        raise ValueError(
            f"Expected a file that can be read. Received: {str(path)!r} "
            f"({error.strerror}). Correct the path or its permissions."
        ) from error
    if len(content) > at_most:
        raise ValueError(
            f"Expected a file of at most {at_most} bytes. Received: "
            f"{str(path)!r}, which is larger. Correct the path."
        )
    return content
