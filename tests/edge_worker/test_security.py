"""Certificates: what is wrong with them is said at the start, and soon."""

import time

import numpy as np
import pytest
from proxy import Proxy
from waiting import poll

from edge_worker import EdgeWorker
from keras_earlyexit.cli._pki import Authority
from protos.errors import NotAllowed


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """Folder with two authorities and what they signed."""
    folder = tmp_path_factory.mktemp("pki")

    def write(name, pem):
        (folder / f"{name}.pem").write_bytes(pem[0])
        (folder / f"{name}.key").write_bytes(pem[1])

    for prefix in ("", "other_"):
        authority = Authority.make()
        write(f"{prefix}ca", authority.pem())
        write(f"{prefix}cloud", authority.sign_server(["127.0.0.1"], 1))
        write(f"{prefix}edge", authority.sign_edge("edge-1", 1))
        write(f"{prefix}expired", authority.sign_edge("edge-1", -1))
    return folder


@pytest.fixture(scope="module")
def secured(exported, start_cloud, pki):
    """A cloud worker that asks for certificates."""
    with start_cloud(
        exported.cloud,
        "--tls-cert", pki / "cloud.pem",
        "--tls-key", pki / "cloud.key",
        "--client-ca", pki / "ca.pem",
    ) as cloud:  # fmt: skip
        yield cloud


def files(pki, edge="edge", ca="ca"):
    return {
        "ca": pki / f"{ca}.pem",
        "cert": pki / f"{edge}.pem",
        "key": pki / f"{edge}.key",
    }


def test_with_certificates_on_both_sides(exported, secured, pki, rows, wanted):
    with Proxy(secured.address, record=True) as proxy:
        with EdgeWorker(exported.edge, proxy.address, **files(pki)) as worker:
            result = worker.predict(rows)
            np.testing.assert_array_equal(result.exit_index, wanted.exit_index)
            proxy.down()
            assert worker.predict(rows).counts["cloud"] == 0
            proxy.up()
            poll(lambda: worker.is_connected, 2)
            assert worker.predict(rows).counts["degraded"] == 0
        for data in proxy.recorded.values():
            assert b"small@" not in data
    hellos = [x for x in secured.lines() if x["message"] == "hello"]
    assert {x["edge_id"] for x in hellos} == {"edge-1"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cert": None, "key": None}, "asks for a client certificate"),
        ({"edge": "other_edge"}, "does not trust"),
        ({"edge": "expired"}, "expired on"),
        ({"ca": "other_ca"}, "authority that is not trusted"),
        ({"ca": None}, "authority that is not trusted"),
        ({"edge_id": "edge-2"}, "PERMISSION_DENIED"),
        ({"insecure": True}, "not insecure"),
    ],
)
def test_what_is_wrong_is_said_at_the_start(
    exported, secured, pki, changes, message
):
    names = {x: changes.pop(x) for x in ("edge", "ca") if changes.get(x)}
    settings = {**files(pki, **names), **changes}
    if settings.get("insecure"):
        settings = {"insecure": True}
    started = time.monotonic()
    with pytest.raises(NotAllowed, match=message):
        EdgeWorker(exported.edge, secured.address, **settings)
    assert time.monotonic() - started < 5


def test_tls_to_a_server_without(exported, cloud, pki):
    with pytest.raises(NotAllowed, match="one without it"):
        EdgeWorker(exported.edge, cloud.address, **files(pki))


def test_files_that_are_not_there(exported, tmp_path):
    with pytest.raises(ValueError, match="nowhere.pem"):
        EdgeWorker(exported.edge, "127.0.0.1:1", ca=tmp_path / "nowhere.pem")
