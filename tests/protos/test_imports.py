"""The wire knows nobody, and needs neither Keras nor TensorFlow."""

import ast
import os
import pathlib
import pkgutil
import subprocess
import sys

import protos

HEAVY = ("keras", "tensorflow", "jax", "torch", "scipy", "keras_earlyexit")
# Only where a certificate is refused, or by a command.
HEAVY += ("cryptography", "edge_worker", "cloud_worker")
FOLDER = pathlib.Path(protos.__file__).parent


def test_import_is_light():
    names = [
        module.name
        for module in pkgutil.walk_packages(protos.__path__, "protos.")
    ]
    assert "protos.tensors" in names
    program = (
        f"import sys, {', '.join(names)}\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    child = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(FOLDER.parent)},
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout == "[]\n"


def test_nothing_of_ours_is_imported_anywhere():
    ours = {"keras_earlyexit", "edge_worker", "cloud_worker"}
    for file in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            found = {name.partition(".")[0] for name in names}
            assert not found & ours, file
