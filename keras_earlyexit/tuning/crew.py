"""A chief and its workers as processes of this machine, kept alive.

KerasTuner's chief hands out trials, and its workers run them. A worker that
dies takes its trial with it, and the chief waits for it for ever. But a worker
that comes back under the same name is given that trial again: so whoever dies
is started anew. None outlives the process that has started them.
"""

import os
import pathlib
import socket
import subprocess
import sys
import time

from keras_earlyexit import supervision

CHIEF = "chief"
_ID, _IP, _PORT = (
    f"KERASTUNER_{name}" for name in ("TUNER_ID", "ORACLE_IP", "ORACLE_PORT")
)
# Statuses that say that a process cannot work here, whoever starts it again.
_HOPELESS = (2, 3, 4)
_TICK_S = 0.5
_END_S = 30.0
# The chief of another machine: how often it is looked for, how long it may be
# silent when there is nothing left to do, and how long at all. KerasTuner's
# own workers would wait for it for an hour, and say nothing.
_LOOK_S = 5.0
_DONE_S = 15.0
_GONE_S = 300.0


class CrewError(Exception):
    """The processes cannot go on; the message says why."""


def role():
    """What this process is: `"chief"`, `"worker"` or `None`, alone."""
    if _IP not in os.environ:
        return None
    return CHIEF if CHIEF in os.environ.get(_ID, "") else "worker"


def free_port():
    """A port of this machine that nobody listens at now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Crew:
    """Starts processes, and again those that die.

    Args:
        command: List of texts: what each process runs.
        names: Names of the workers; KerasTuner knows them by these.
        address: `(host, port)` of the chief.
        logs: Folder for what the processes print.
        has_chief: Whether the chief is one of them.
        joins: Whether the chief is on another machine.
        tell: Called with a text when a process is started.
    """

    def __init__(
        self,
        command,
        names,
        address,
        logs,
        has_chief=True,
        joins=False,
        tell=None,
    ):
        self._command = list(command)
        self._address = address
        self._logs = pathlib.Path(logs)
        self._tell = tell or (lambda text: None)
        self._chief = None
        self._workers = dict.fromkeys(names)
        self._has_chief = has_chief
        self._joins = joins
        self._deaths = 0
        self._seen_at = self._looked_at = time.monotonic()
        self._is_missed = False

    def run(self, progress=None, wait_for_chief=False):
        """Runs until all trials have ended.

        Args:
            progress: Called now and then; returns how many trials have ended.
            wait_for_chief: Whether workers of other machines may still be at
                work when those of this one have ended.

        Raises:
            CrewError: If a process cannot work, if processes die again and
                again while no trial ends, or if the chief of another machine
                is not there.
        """
        ended, told = 0, False
        try:
            if self._has_chief:
                self._chief = self._start(CHIEF)
            for name in self._workers:
                self._workers[name] = self._start(name)
            while True:
                at_work = self._tend()
                waiting = wait_for_chief and self._chief is not None
                if not at_work and not waiting:
                    break
                if self._joins and self._is_over():
                    break
                if not at_work and not told:
                    self._tell("waiting for workers of other machines")
                    told = True
                time.sleep(_TICK_S)
                done = progress() if progress else 0
                if done > ended:
                    ended, self._deaths = done, 0
            if progress:
                progress()
        finally:
            self._end()

    def _tend(self):
        """Whether workers are at work; starts again those that have died."""
        if self._chief is not None and self._chief.poll() is not None:
            if not self._chief.returncode:
                # It has nothing to hand out any more, so nobody needs it.
                self._chief.stdin.close()
                self._chief = None
            else:
                self._mourn(CHIEF, self._chief)
                self._chief = self._start(CHIEF)
        at_work = False
        for name, process in self._workers.items():
            status = process.poll()
            if status is None:
                at_work = True
            elif status:
                self._mourn(name, process)
                self._workers[name] = self._start(name)
                at_work = True
        return at_work

    def _is_over(self):
        """Whether the chief of another machine is gone, as nothing is left."""
        now = time.monotonic()
        if now - self._looked_at < _LOOK_S:
            return False
        self._looked_at = now
        place = f"{self._address[0]}:{self._address[1]}"
        try:
            socket.create_connection(self._address, timeout=_LOOK_S).close()
        except OSError as error:
            silent = now - self._seen_at
            if not self._is_missed:
                self._is_missed = True
                self._tell(f"nobody listens at {place} now; waiting")
            if silent > _GONE_S:
                raise CrewError(
                    f"Expected a search that listens at {place}. Received: "
                    f"nothing for {silent:.0f} seconds ({error}). Start it "
                    "with --listen, and look at address and network."
                ) from error
            # Only who is told that there is nothing left to do ends so.
            ended = [x.poll() == 0 for x in self._workers.values()]
            return any(ended) and silent > _DONE_S
        self._seen_at, self._is_missed = now, False
        return False

    def _mourn(self, name, process):
        self._deaths += 1
        process.stdin.close()
        status, log = process.returncode, self._log(name)
        what = f"status {status}" if status > 0 else f"signal {-status}"
        allowed = 3 + 3 * len(self._workers)
        if status in _HOPELESS or self._deaths > allowed:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            why = "" if status in _HOPELESS else f", the last of {allowed + 1}"
            raise CrewError(
                f"'{name}' has ended with {what}{why}: {' '.join(last)}\n"
                f"All that it has printed is in '{log}'. What has ended is "
                "kept: the same command goes on from there."
            )
        self._tell(f"{name} has ended with {what}; starting it again")

    def _start(self, name):
        host, port = self._address
        environment = {
            **os.environ,
            _ID: name,
            _IP: host,
            _PORT: str(port),
        }
        self._logs.mkdir(parents=True, exist_ok=True)
        with open(self._log(name), "ab") as log:
            process = supervision.start(
                self._command, environment, stdout=log, stderr=log
            )
        self._tell(f"started {name} (process {process.pid})")
        return process

    def _log(self, name):
        return self._logs / f"{name}.log"

    def _end(self):
        processes = [self._chief, *self._workers.values()]
        processes = [process for process in processes if process is not None]
        for process in processes:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + _END_S
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdin.close()


def this_command(arguments):
    """The command that runs `keras-earlyexit` with some arguments."""
    return [sys.executable, "-m", "keras_earlyexit", *arguments]
