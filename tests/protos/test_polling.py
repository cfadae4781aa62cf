"""Programs of ours read from sockets in the thread that waits for them."""

import os
import subprocess
import sys

import pytest

from protos import polling

_PROGRAM = """
import os
from protos.polling import poll_directly
print(poll_directly(), os.environ.get("GRPC_EXPERIMENTS"))
import grpc
with grpc.insecure_channel("127.0.0.1:1"):
    pass
"""


def run(**environment):
    """What the program prints, and what gRPC complains about."""
    child = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        | environment,
    )
    return child.stdout.split(), child.stderr


def test_grpc_knows_what_it_is_told(monkeypatch):
    monkeypatch.delenv("GRPC_EXPERIMENTS", raising=False)
    (done, told), complaints = run()
    if done == "False":
        pytest.skip("a release of gRPC that has not been looked at")
    assert told == polling._DIRECT
    assert "experiment" not in complaints.lower()


def test_what_the_environment_says_stays():
    (done, told), complaints = run(GRPC_EXPERIMENTS="-nonsense")
    assert (done, told) == ("False", "-nonsense")
    # Where gRPC does not read it any more, the test above proves nothing.
    assert "Unknown experiment: nonsense" in complaints


@pytest.mark.parametrize("version", ["1.73.1", "2.0.0", "dev", ""])
def test_other_releases_are_left_alone(version, monkeypatch):
    monkeypatch.delenv("GRPC_EXPERIMENTS", raising=False)
    monkeypatch.setattr(polling.metadata, "version", lambda name: version)
    assert not polling.poll_directly()
    assert "GRPC_EXPERIMENTS" not in os.environ
