"""A small private authority and the certificates that it signs.

Enough to try a split model over TLS. An organisation that has an authority of
its own uses that.
"""

import datetime
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_AUTHORITY_NAME = "keras-earlyexit trial authority"
_AUTHORITY_DAYS = 3650
_SERVER_NAME = "cloud-worker"
# For clocks that are slow.
_EARLIER = datetime.timedelta(hours=1)


class Authority:
    """Signs certificates for cloud workers and edges.

    Args:
        certificate: Its own certificate.
        key: The key that belongs to it.
    """

    def __init__(self, certificate, key):
        self._certificate = certificate
        self._key = key

    @classmethod
    def make(cls):
        """A new one."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(_AUTHORITY_NAME)
        days = datetime.timedelta(days=_AUTHORITY_DAYS)
        builder = _builder(name, name, key.public_key(), _now() + days)
        builder = builder.add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        ).add_extension(_key_usage(signs_certificates=True), critical=True)
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, certificate, key):
        """One that was written before.

        Args:
            certificate: PEM bytes.
            key: PEM bytes.

        Raises:
            ValueError: If they are no certificate with its key.
        """
        certificate = x509.load_pem_x509_certificate(certificate)
        try:
            key = serialization.load_pem_private_key(key, password=None)
        except TypeError as error:
            raise ValueError("the key is encrypted") from error
        if certificate.public_key() != key.public_key():
            raise ValueError("the key belongs to another certificate")
        return cls(certificate, key)

    def pem(self):
        """PEM bytes of its certificate and of its key."""
        return _pem(self._certificate, self._key)

    def sign_server(self, hosts, days):
        """A certificate for a cloud worker.

        Args:
            hosts: Names and IP addresses under which it is reached.
            days: How long it is valid.

        Returns:
            PEM bytes of the certificate and of its key.
        """
        names = x509.SubjectAlternativeName([_host(host) for host in hosts])
        usage = x509.ExtendedKeyUsageOID.SERVER_AUTH
        return self._sign(_SERVER_NAME, usage, _end(days), names)

    def sign_edge(self, edge_id, days):
        """A certificate for an edge.

        Args:
            edge_id: The id that it has in it, as common name.
            days: How long it is valid; negative for one that has expired.

        Returns:
            PEM bytes of the certificate and of its key.
        """
        usage = x509.ExtendedKeyUsageOID.CLIENT_AUTH
        return self._sign(edge_id, usage, _end(days))

    def _sign(self, common_name, usage, end, *extensions):
        key = ec.generate_private_key(ec.SECP256R1())
        # What outlives its authority is refused for a reason that is hard to
        # see.
        end = min(end, self._certificate.not_valid_after_utc)
        builder = _builder(
            _name(common_name),
            self._certificate.subject,
            key.public_key(),
            end,
        )
        builder = (
            builder.add_extension(
                x509.BasicConstraints(ca=False, path_length=None),
                critical=True,
            )
            .add_extension(_key_usage(), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(
                    self._key.public_key()
                ),
                critical=False,
            )
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return _pem(builder.sign(self._key, hashes.SHA256()), key)


def _builder(subject, issuer, public_key, end):
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(_now(), end) - _EARLIER)
        .not_valid_after(end)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(public_key),
            critical=False,
        )
    )


def _key_usage(signs_certificates=False):
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host):
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _name(common_name):
    attribute = x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)
    return x509.Name([attribute])


def _end(days):
    return _now() + datetime.timedelta(days=days)


def _now():
    return datetime.datetime.now(datetime.timezone.utc)


def _pem(certificate, key):
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
