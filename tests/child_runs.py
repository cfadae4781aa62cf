"""Runs of the marked tests on other Keras backends, beside the main run.

Keras takes its backend at import and keeps it, so each other backend gets a
child process. It starts with the main run, on another core, and
`test_backends.py`, which comes last, waits for its result.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile

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


class ChildRun:
    """The marked tests on one backend, in a process that runs already."""

    def __init__(self, backend):
        self._backend = backend
        self._output = tempfile.TemporaryFile("w+", encoding="utf-8")
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
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "pytest", "-q", "--color=no"),
                *("-m", "backends and not faults and not fuzz and not long"),
                *("-p", "no:cacheprovider"),
                *map(str, marked_files()),
            ],
            cwd=TESTS.parent,
            env=environment,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def wait(self, within_s):
        """Waits for the end; returns the exit status and what was printed."""
        status = self._process.wait(within_s)
        self._output.seek(0)
        # Marked line by line, so that nobody takes it for the main run's.
        lines = self._output.read().splitlines()
        return status, "\n".join(f"{self._backend} | {x}" for x in lines)

    def close(self):
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)
        self._output.close()


def marked_files():
    """The test files with a test marked `backends`."""
    return [
        file
        for file in sorted(TESTS.rglob("test_*.py"))
        if "mark.backends" in file.read_text(encoding="utf-8")
    ]
