"""Both sides of training as processes, with the commands, for tests."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

from waiting import poll

from keras_earlyexit import snapshots

HERE = pathlib.Path(__file__).resolve().parent
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parent))),
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "",
}


class Processes:
    """Both sides in one folder, named so that several fit side by side."""

    def __init__(self, folder, name):
        self.folder, self.name = folder, name
        self.addresses = {}
        self.running, self.environment, self.kills = {}, {}, 0

    def path(self, what):
        return self.folder / f"{self.name}_{what}"

    def address(self, side):
        """Where a side listens: the same after each start."""
        if side not in self.addresses:
            with socket.socket() as taken:
                taken.bind(("127.0.0.1", 0))
                port = taken.getsockname()[1]
            self.addresses[side] = f"127.0.0.1:{port}"
        return self.addresses[side]

    def start(self, side, *options, asks="cloud"):
        """Starts an edge, which asks another side, or a cloud worker."""
        shared = {
            "--model": self.folder / "model.keras",
            "--state": self.path(f"{side}_state"),
            "--output": self.path(f"{side}.keras"),
            "--learning-rate": 0.01,
        }
        program = "edge" if side.startswith("edge") else "cloud"
        if program == "edge":
            shared |= {"--cloud": self.address(asks), "--edge-id": side}
        else:
            shared |= {"--listen": self.address(side)}
        arguments = [str(item) for pair in shared.items() for item in pair]
        with open(self.path(f"{side}.log"), "ab") as log:
            self.running[side] = subprocess.Popen(
                [
                    sys.executable,
                    HERE / "training_commands.py",
                    program,
                    "--insecure",
                    *arguments,
                    *map(str, options),
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, **ENVIRONMENT, **self.environment},
            )
        return self.running[side]

    def disturb(self, faults, watched, steps, rng):
        """Lets a fault happen at some step of each part of a run.

        Nobody has more batches than it takes to get there. So it does not
        hang on the speed of the machine what is left to do afterwards.

        Args:
            faults: List of functions that kill somebody, and start it again.
            watched: The side whose steps count.
            steps: All steps.
            rng: A `random.Random`.
        """
        part = steps // (len(faults) + 1)
        for i, fault in enumerate(faults):
            self.allow((i + 1) * part)
            # Not every step is followed by a checkpoint or a commit.
            least = i * part + rng.randrange(1, part - 7)
            poll(lambda least=least: self.steps(watched) >= least, 600)
            time.sleep(rng.uniform(0, 0.1))
            fault()
        self.allow(steps)

    def log(self, side):
        return self.path(f"{side}.log").read_text()

    def wait(self, side, seconds=300):
        assert self.running[side].wait(seconds) == 0, self.log(side)

    def kill(self, side):
        process = self.running[side]
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait(60)
            self.kills += 1

    def stop(self, side):
        """Ends a cloud worker as told."""
        self.running[side].send_signal(signal.SIGTERM)
        self.wait(side)

    def allow(self, batches):
        """From now on edges that are started have no more than so many."""
        path = self.path("batches")
        self.environment["BATCHES_FILE"] = str(path)
        new = path.with_suffix(".new")
        new.write_text(str(batches))
        new.replace(path)

    def state(self, side):
        """What a side has for good: a list of arrays."""
        return self._snapshot(side)[0]

    def steps(self, side):
        """Batches that a side has for good."""
        try:
            facts = self._snapshot(side)[1]
        except FileNotFoundError:
            return 0
        if side.startswith("edge"):
            return (facts["progress"] or {"sequence": 0})["sequence"]
        return facts["steps"]

    def _snapshot(self, side):
        name = "checkpoint" if side.startswith("edge") else "ledger"
        return snapshots.read(self.path(f"{side}_state") / name)

    def finish(self):
        """Ends the cloud, once the edge has ended; what both have become."""
        self.wait("edge", 600)
        self.stop("cloud")
        return [self.state("edge"), self.state("cloud")]
