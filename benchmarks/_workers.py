"""A cloud worker in a process of its own, for benchmarks."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def cloud_worker(bundle, *options):
    """Runs `cloud-worker serve` on loopback; gives a `Running`.

    Args:
        bundle: Folder of its bundle.
        *options: Further options of the command.
    """
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "cloud_worker", "serve", "--insecure"),
            *("--bundle", str(bundle), "--listen", "127.0.0.1:0"),
            # Nobody reads on, so that it must not write a line per request.
            *("--log-level", "warning", *map(str, options)),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Running(process)
    finally:
        process.terminate()
        process.communicate(timeout=30)


class Running:
    """A worker that runs.

    Args:
        process: Its process, which has not told its address yet.
    """

    def __init__(self, process):
        self.pid = process.pid
        self.address = _address(process)

    def processor_seconds(self):
        """Seconds that its threads have run so far."""
        stat = pathlib.Path(f"/proc/{self.pid}/stat").read_text()
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _address(process):
    for line in process.stdout:
        message = json.loads(line).get("message", "")
        if message.startswith("listening on "):
            return message.split()[-1]
    raise RuntimeError("The cloud worker ended before it listened.")
