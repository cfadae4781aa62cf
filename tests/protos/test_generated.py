"""The generated code is what the generator makes of the .proto file."""

import pathlib
import subprocess
import sys
from importlib import metadata

import pytest

import protos

FOLDER = pathlib.Path(protos.__file__).parent
GENERATOR = "1.74.0"
NAMES = ("split_pb2.py", "split_pb2.pyi", "split_pb2_grpc.py")


def test_generated_code_is_current(tmp_path):
    try:
        version = metadata.version("grpcio-tools")
    except metadata.PackageNotFoundError:
        version = None
    if version != GENERATOR:
        pytest.skip(
            f"grpcio-tools is {version}: install it with "
            f"pip install --no-deps grpcio-tools=={GENERATOR}"
        )
    (tmp_path / "protos").mkdir()
    out = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi")]
    out.append(f"--grpc_python_out={tmp_path}")
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *out]
    # It asks for pkg_resources or warns, depending on what is installed.
    child = subprocess.run(
        [*command, "protos/split.proto"],
        cwd=FOLDER.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert child.returncode == 0, child.stderr
    for name in NAMES:
        expected = (tmp_path / "protos" / name).read_bytes()
        assert (FOLDER / name).read_bytes() == expected, (
            f"{name} is not what split.proto says: make protos"
        )
