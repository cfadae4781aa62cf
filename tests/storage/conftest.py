"""Stores: folders, memory, and a server that speaks S3 where moto is."""

import importlib.util
import os
import secrets
import socket
import subprocess
import sys

import pytest
from waiting import poll

_SERVER = "import sys; from moto.server import main; main(sys.argv[1:])"
_HAS_S3 = all(importlib.util.find_spec(x) for x in ("moto", "s3fs"))


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """URL of a bucket on a real server, in a process of its own."""
    if not _HAS_S3:
        pytest.skip("needs pip install 'moto[server]' s3fs")
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    log = tmp_path_factory.mktemp("s3") / "server.log"
    with open(log, "w") as out:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", _SERVER),
                *("-H", "127.0.0.1", "-p", str(port)),
            ],
            stdout=out,
            stderr=out,
        )
    before = dict(os.environ)
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION="us-east-1",
    )
    try:
        poll(lambda: _answers(port), within_s=120)
        import s3fs

        s3fs.S3FileSystem().mkdir("models")
        yield "s3://models"
    finally:
        process.terminate()
        process.wait(30)
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(params=["file", "memory", "s3"])
def url(request, tmp_path):
    """URL of an empty place in a store."""
    pytest.importorskip("fsspec")
    name = secrets.token_hex(8)
    if request.param == "file":
        return f"file://{tmp_path}/{name}"
    if request.param == "memory":
        return f"memory://{name}"
    return f"{request.getfixturevalue('s3')}/{name}"


def _answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
