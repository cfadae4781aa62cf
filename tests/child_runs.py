"""Runs of the marked tests on other Keras backends.

Keras takes its backend at import and keeps it, so each other backend gets a
child process. `test_backends.py`, which comes first, starts it and waits; the
other tests run meanwhile where pytest has several workers (`make test`).
"""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

TESTS = pathlib.Path(__file__).parent
BACKENDS = ("jax", "tensorflow", "torch")
IS_CHILD = "KERAS_EARLYEXIT_CHILD_RUN"


def others():
    """The installed backends that this run is not on; none in a child."""
    if IS_CHILD in os.environ:
        return ()
    return tuple(
        name
        for name in BACKENDS
        if name != os.environ["KERAS_BACKEND"]
        and importlib.util.find_spec(name) is not None
    )


def run(backend, marker, within_s):
    """Runs tests on a backend; the exit status and what was printed.

    Args:
        backend: Its name.
        marker: The marker of the tests.
        within_s: Seconds that they may take in all.

    Raises:
        subprocess.TimeoutExpired: If it takes longer; it is ended then.
    """
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
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "--color=no"),
            *("-m", f"{marker} and not faults and not fuzz and not long"),
            *("-p", "no:cacheprovider", "-p", "no:xdist"),
            *map(str, _files(marker)),
        ],
        cwd=TESTS.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=within_s,
        encoding="utf-8",
    )
    # Marked line by line, so that nobody takes it for the main run's.
    lines = done.stdout.splitlines()
    return done.returncode, "\n".join(f"{backend} | {x}" for x in lines)


def _files(marker):
    """The test files with a test that has a marker."""
    marked = re.compile(rf"\bmark\.{marker}\b")
    return [
        file
        for file in sorted(TESTS.rglob("test_*.py"))
        if marked.search(file.read_text(encoding="utf-8"))
    ]
