"""What tests of the wire share; none of them needs Keras."""

import numpy as np
import pytest

from keras_earlyexit.cli._pki import Authority


@pytest.fixture(autouse=True)
def seed():
    """In place of the one for all tests, which imports Keras."""


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def pki(tmp_path_factory):
    """Folder with two authorities and the certificates that they signed."""
    folder = tmp_path_factory.mktemp("pki")

    def write(name, pem):
        (folder / f"{name}.pem").write_bytes(pem[0])
        (folder / f"{name}.key").write_bytes(pem[1])

    for prefix in ("", "other_"):
        authority = Authority.make()
        write(f"{prefix}ca", authority.pem())
        hosts = ["localhost", "127.0.0.1"]
        write(f"{prefix}cloud", authority.sign_server(hosts, 1))
        write(f"{prefix}edge", authority.sign_edge("edge-1", 1))
        write(f"{prefix}expired", authority.sign_edge("edge-1", -1))
        write(f"{prefix}expired_cloud", authority.sign_server(hosts, -1))
        elsewhere = ["cloud.invalid", "10.0.0.1"]
        write(f"{prefix}elsewhere", authority.sign_server(elsewhere, 1))
    return folder
