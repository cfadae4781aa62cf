"""`edge-worker serve` as a process, and what it writes."""

import contextlib
import http.client
import json
import signal
import subprocess
import sys

from waiting import poll


class EdgeProcess:
    """An edge worker that answers over HTTP and gRPC, at ports of the system's.

    Args:
        bundle: Folder of its bundle.
        cloud: Address of its cloud worker.
        log: File that its output goes to.
        *options: Further options of `edge-worker serve`.
    """

    def __init__(self, bundle, cloud, log, *options):
        self.log = log
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "edge_worker", "serve",
                    "--bundle", str(bundle), "--cloud", cloud, "--insecure",
                    "--listen", "127.0.0.1:0", "--grpc", "127.0.0.1:0",
                    *options,
                ],
                stdout=file,
            )  # fmt: skip
        try:
            poll(self._has_started, within_s=120)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        first = self.lines()[0]
        self.http, self.grpc = first["address"], first["grpc_address"]

    def lines(self):
        """What it has logged, a list of dicts."""
        with open(self.log) as file:
            return [json.loads(x) for x in file if x.endswith("\n")]

    def _has_started(self):
        if self.process.poll() is not None:
            raise RuntimeError("it has ended")
        return self.lines()

    def ask(self, method, path, body=None, **headers):
        """Status and content of an answer over HTTP."""
        connection = http.client.HTTPConnection(self.http, timeout=60)
        with contextlib.closing(connection):
            if isinstance(body, (dict, list)):
                body = json.dumps(body)
            headers = {"Content-Type": "application/json", **headers}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def stop(self):
        """Ends it as a service manager would; returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.stop()
