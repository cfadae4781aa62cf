"""Workers as real processes, which can be killed, frozen and started again."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
START_S = 120


class CloudProcess:
    """A cloud worker in a process of its own, always at the same port.

    Args:
        bundle: Folder of its bundle.
        log: File that its output goes to.
        *options: Further options of `cloud-worker serve`.
        start_s: Seconds that a start may take.
        insecure: `False` where the options say what secures it.
    """

    def __init__(self, bundle, log, *options, start_s=START_S, insecure=True):
        self._start_s = start_s
        # The system chooses the port at the first start.
        self.address = "127.0.0.1:0"
        self._log = log
        self._command = [
            *(sys.executable, "-c", _END_WITH_PARENT),
            *("-m", "cloud_worker", "serve", "--bundle", str(bundle)),
            *(("--insecure",) if insecure else ()),
            *map(str, options),
        ]
        self._process = None

    @property
    def pid(self):
        return self._process.pid

    def log_text(self):
        """What it has written so far."""
        return pathlib.Path(self._log).read_text(encoding="utf-8")

    def start(self):
        """Starts it, and waits until it says that it listens."""
        ends_at = time.monotonic() + self._start_s
        while not self._try_to_start():
            # Somebody else may have got the port meanwhile, for a moment.
            if time.monotonic() > ends_at:
                raise RuntimeError(
                    f"The worker does not start; see {self._log}."
                )

    def _try_to_start(self):
        listening = threading.Event()
        self._process = subprocess.Popen(
            [*self._command, "--listen", self.address],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reading = threading.Thread(
            target=self._read, args=(self._process, listening)
        )
        self._reading.start()
        if listening.wait(self._start_s) and self._process.poll() is None:
            return True
        self.kill()
        return False

    def kill(self):
        """SIGKILL: whatever it is doing."""
        self._end(signal.SIGKILL)

    def stop(self):
        """SIGTERM; returns the exit status."""
        return self._end(signal.SIGTERM)

    def freeze(self):
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self._process.send_signal(signal.SIGCONT)

    def ask_to_stop(self):
        self._process.send_signal(signal.SIGTERM)

    def _end(self, number):
        if self._process is None:
            return None
        process, self._process = self._process, None
        process.send_signal(number)
        try:
            status = process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        self._reading.join()
        process.stdout.close()
        return status

    def _read(self, process, listening):
        """Keeps what it writes, so that it never waits for a reader."""
        with open(self._log, "a", encoding="utf-8") as log:
            for line in process.stdout:
                log.write(line)
                log.flush()
                with contextlib.suppress(ValueError):
                    message = json.loads(line).get("message", "")
                    if message.startswith("listening on"):
                        self.address = message.split()[-1]
                        listening.set()
        listening.set()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            self.kill()


# Run by the child in front of the worker, and not as a `preexec_fn`: forking a
# process with gRPC's threads in it may crash.
_END_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL("libc.so.6").prctl(1, signal.SIGKILL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
