"""A connection at the start, to see whether both sides believe each other.

To gRPC a certificate that is refused looks like a network that is down, so an
edge would try again for ever. Here a plain TLS connection is made and the
reason said.
"""

import datetime
import socket
import ssl

from protos.addresses import split_address
from protos.errors import CloudUnavailable, NotAllowed, Refused

# What opens a connection of HTTP/2, with an empty frame of settings.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
_FRAME_HEAD = 9
_SETTINGS = 4
# OpenSSL's numbers of what is wrong with the certificate of a server.
_REASONS = {
    9: "is not valid yet. Set the clock of this machine",
    10: "has expired. Make a new one for the cloud worker",
    18: "was signed by itself. Pass the file of its authority as ca",
    19: "comes from an authority that is not trusted here. Pass the file of "
    "its authority as ca",
    20: "comes from an authority that is not trusted here. Pass the file of "
    "its authority as ca",
    62: "is for another host. Use a host name that it was made for",
    64: "is for another IP address. Use an address that it was made for",
}
# Parts of what servers other than gRPC's say of a client's certificate.
_ALERTS = ("ALERT_CERTIFICATE", "ALERT_BAD_CERTIFICATE", "ALERT_UNKNOWN_CA")


def check_tls(target, security, timeout_s):
    """Connects and says why the two sides do not come together.

    Args:
        target: `"host:port"` of a cloud worker.
        security: The `ClientSecurity` to use.
        timeout_s: Seconds to wait for each of: the connection, the handshake,
            the first bytes.

    Raises:
        NotAllowed: If a certificate is missing, wrong or expired on either
            side, or if only one side uses TLS.
        Refused: If what answers is no gRPC server.
        CloudUnavailable: If nothing answers.
        ValueError: If the files of `security` are not what they should be.
    """
    context = security.ssl_context()
    try:
        # A worker that ends at this moment closes as one does that refuses;
        # only the latter does it again.
        first = _ask(target, context, timeout_s) or _ask(
            target, context, timeout_s
        )
        if not first and context is None and _speaks_tls(target, timeout_s):
            raise NotAllowed(
                f"Expected a server without TLS at {target}. Received: one "
                "that uses it. Pass ca, cert and key, not insecure."
            )
    except ssl.SSLCertVerificationError as error:
        reason = _REASONS.get(error.verify_code)
        reason = reason or f"is not accepted ({error.verify_message})"
        raise NotAllowed(
            f"Expected a certificate of {target} that this edge can trust. "
            f"Received: one that {reason}."
        ) from error
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
        raise _unavailable(target, "the connection was closed") from error
    except ssl.SSLError as error:
        if any(alert in str(error.reason) for alert in _ALERTS):
            raise NotAllowed(_why_closed(target, security)) from error
        raise NotAllowed(
            f"Expected a server with TLS at {target}. Received: "
            f"{_shown(error)}. Start the cloud worker with a certificate, and "
            "look at the port."
        ) from error
    except OSError as error:
        raise _unavailable(target, error.strerror or error) from error
    if not first and context is None:
        raise _unavailable(target, "the connection was closed")
    if not first:
        raise NotAllowed(_why_closed(target, security))
    if len(first) < _FRAME_HEAD or first[3] != _SETTINGS:
        raise Refused(
            f"Expected a gRPC server at {target}. Received: an answer that "
            "is not HTTP/2. Look at the host and the port."
        )


def read_certificate(path):
    """Common name and end of validity of a certificate.

    Args:
        path: PEM file; the first certificate in it counts.

    Returns:
        The common name, or `None`, and a `datetime` with time zone.

    Raises:
        ValueError: If there is no certificate in it.
        OSError: If it cannot be read.
    """
    # Only here: it is needed where something is wrong, and by commands.
    from cryptography import x509

    with open(path, "rb") as file:
        certificate = x509.load_pem_x509_certificate(file.read())
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return names[0].value if names else None, certificate.not_valid_after_utc


def _connect(target, timeout_s):
    return socket.create_connection(split_address(target), timeout_s)


def _ask(target, context, timeout_s):
    """What a server says first; nothing if it closes the connection."""
    with _connect(target, timeout_s) as connection:
        if context is None:
            connection.sendall(_PREFACE)
            return _first_bytes(connection)
        host, _ = split_address(target)
        with context.wrap_socket(connection, server_hostname=host) as secured:
            return _first_bytes(secured)


def _first_bytes(connection):
    """The head of the first frame; nothing if the peer closed."""
    first = b""
    while len(first) < _FRAME_HEAD:
        received = connection.recv(_FRAME_HEAD - len(first))
        if not received:
            break
        first += received
    return first


def _speaks_tls(target, timeout_s):
    """Whether the peer answers a TLS handshake; not whom it believes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with _connect(target, timeout_s) as connection:
            with context.wrap_socket(connection):
                return True
    except OSError:
        return False


def _why_closed(target, security):
    if security.cert is None:
        return (
            f"Expected to be let in by {target}. Received: a server that asks "
            "for a client certificate. Pass cert and key of this edge."
        )
    _, end = read_certificate(security.cert)
    if end < datetime.datetime.now(datetime.timezone.utc):
        return (
            f"Expected a client certificate that {target} accepts. Received: "
            f"{security.cert}, which expired on {end:%Y-%m-%d}. Make a new "
            "one, with the same authority and the same edge id."
        )
    return (
        f"Expected a client certificate that {target} accepts. Received: "
        f"{security.cert}, which it does not trust. Use one that was signed "
        "by the authority in the cloud worker's client_ca."
    )


def _shown(error):
    if error.reason == "WRONG_VERSION_NUMBER":
        return "one without it"
    return str(error.reason or error).lower().replace("_", " ")


def _unavailable(target, reason):
    return CloudUnavailable(
        f"Expected an answer from {target}. Received: {reason}. Start the "
        "cloud worker, and look at the host, the port and the network."
    )
