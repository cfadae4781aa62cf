"""`keras-earlyexit tune` as processes."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

from waiting import poll

from keras_earlyexit import tuning

TESTS = pathlib.Path(__file__).parent
SMALL = (
    *("--model", "tuning_data:build", "--data", "tuning_data:few"),
    *("--exits", "1", "--objectives", "sdn", "--epochs", "1"),
    *("--tuner", "random", "--no-prune", "--batch-size", "100"),
)


class Tuning:
    """The command in a process of its own.

    Args:
        folder: Folder of the search.
        *options: Further options.
        name: What the files of its output are named after.
    """

    def __init__(self, folder, *options, name=""):
        self.folder = folder
        arguments = [*SMALL, "--output", folder, "--json", *options]
        command = [sys.executable, "-m", "keras_earlyexit", "tune", *arguments]
        folder.mkdir(exist_ok=True)
        self._errors = folder / f"{name}errors.txt"
        self._output = folder / f"{name}output.txt"
        with (
            open(self._errors, "ab") as errors,
            open(self._output, "wb") as out,
        ):
            self.process = subprocess.Popen(
                [str(part) for part in command],
                cwd=TESTS,
                env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
                stdout=out,
                stderr=errors,
            )

    def ended(self):
        """The trials that have ended."""
        trials = tuning.read_trials(self.folder)
        return [trial for trial in trials if trial.status != "running"]

    def running(self):
        """Those that have not."""
        trials = tuning.read_trials(self.folder)
        return [trial for trial in trials if trial.status == "running"]

    def wait_until(self, condition, within_s=240):
        """Waits for what has to happen while the process is alive."""

        def happened():
            status = self.process.poll()
            assert status is None, f"ended with {status}:\n{self.said}"
            return condition()

        poll(happened, within_s)

    def workers(self):
        """Process ids of chief and workers that were started, by name."""
        found = re.findall(r"started (\S+) \(process (\d+)\)", self.said)
        return {name: int(number) for name, number in found}

    @property
    def said(self):
        """What it has printed to where errors go."""
        return self._errors.read_text()

    def result(self, within_s=280):
        """The JSON that it prints in the end."""
        status = self.process.wait(within_s)
        assert status == 0, self.said
        return json.loads(self._output.read_text())

    def kill(self):
        """Ends it at once, wherever it is."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
