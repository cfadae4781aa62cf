"""Runs the tests marked `backends` again on the other Keras backends.

Keras takes its backend at import and keeps it, so each other backend gets a
child process. A test file joins by `pytestmark = pytest.mark.backends`.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys

import keras
import pytest

TESTS = pathlib.Path(__file__).parent
OTHERS = ("jax", "tensorflow", "torch")
IS_CHILD = "KERAS_EARLYEXIT_CHILD_RUN"


@pytest.mark.backends
def test_this_process_runs_the_backend_that_was_asked_for():
    assert keras.backend.backend() == os.environ["KERAS_BACKEND"]


@pytest.mark.timeout(1060)
@pytest.mark.skipif(IS_CHILD in os.environ, reason="this is the child run")
@pytest.mark.parametrize("backend", OTHERS)
def test_marked_tests_pass_on(backend):
    if backend == keras.backend.backend():
        pytest.skip(f"this run is on {backend} already")
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    files = [
        str(file)
        for file in sorted(TESTS.rglob("test_*.py"))
        if "mark.backends" in file.read_text(encoding="utf-8")
    ]
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        IS_CHILD: "1",
        # Many small programs are compiled and each is run a few times.
        "XLA_FLAGS": "--xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true",
    }
    # What was asked of this run, such as -k, is not meant for the child.
    environment.pop("PYTEST_ADDOPTS", None)
    child = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "--color=no"),
            *("-m", "backends and not faults and not fuzz and not long"),
            *("-p", "no:cacheprovider"),
            *files,
        ],
        cwd=TESTS.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1000,
    )
    # Marked line by line, so that nobody takes it for this run's own summary.
    output = "\n".join(f"{backend} | {x}" for x in child.stdout.splitlines())
    assert child.returncode == 0, f"tests fail on {backend}\n{output}"
