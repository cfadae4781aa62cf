"""Both sides are killed at any moment, and nothing shows it in the weights."""

import os
import pathlib
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from linear_training import LinearStepper, bytes_of, replay
from training_child import POINTS
from waiting import poll

from keras_earlyexit import snapshots

#: What a machine with much else to do may take; not what is measured.
PATIENCE_S = 300
pytestmark = pytest.mark.timeout(1800)
HERE = pathlib.Path(__file__).resolve().parent.parent


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Side:
    """One side as a process, which is started again after it was killed."""

    def __init__(self, log, *arguments):
        self._log, self._arguments = log, list(map(str, arguments))
        self.kills = 0
        self.start()

    def start(self, *more):
        path = os.pathsep.join((str(HERE), str(HERE.parent)))
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    HERE / "training_child.py",
                    *self._arguments,
                    *map(str, more),
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": path},
            )

    def kill(self):
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait(PATIENCE_S)
            self.kills += 1

    def text(self):
        return pathlib.Path(self._log).read_text()


@pytest.fixture
def sides(tmp_path):
    made = []

    def make(name, *arguments):
        side = Side(tmp_path / f"{name}.log", *arguments)
        made.append(side)
        return side

    yield make
    for side in made:
        side.kill()


def check_done(edge, cloud):
    ends = time.monotonic() + PATIENCE_S
    while edge.process.poll() is None and time.monotonic() < ends:
        if cloud.process.poll() is not None:
            cloud.kills += 1
            cloud.start()
        time.sleep(0.02)
    assert edge.process.poll() == 0, edge.text() + cloud.text()


def check_ledger(folder, steps):
    arrays, facts = snapshots.read(folder / "ledger")
    assert facts["steps"] == steps
    assert facts["edges"]["edge-0"][1] == steps
    found = LinearStepper()
    found.restore(arrays)
    assert bytes_of(found) == bytes_of(replay([(0, i) for i in range(steps)]))


def committed(folder):
    """Steps that are in the ledger."""
    try:
        return snapshots.read(folder / "ledger")[1]["steps"]
    except FileNotFoundError:
        return 0


def kill_at_random(sides, tmp_path, steps, kills, seed):
    """Kills the edge and the cloud in turn, at random moments of the run."""
    rng, port = random.Random(seed), free_port()
    cloud = sides("cloud", "cloud", tmp_path / "c", port)
    edge = sides("edge", "edge", tmp_path / "e", port, steps)
    # Not by the clock: how long the steps take is the machine's affair.
    moments = sorted(rng.sample(range(steps * 3 // 4), kills))
    for i, moment in enumerate(moments):
        poll(
            lambda least=moment: committed(tmp_path / "c") >= least, PATIENCE_S
        )
        time.sleep(rng.uniform(0, 0.02))
        side = (edge, cloud)[i % 2]
        side.kill()
        side.start()
    check_done(edge, cloud)
    check_ledger(tmp_path / "c", steps)
    return edge.kills + cloud.kills


def test_few_kills_of_both_sides(sides, tmp_path):
    assert kill_at_random(sides, tmp_path, 3000, 4, seed=0) >= 4


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(3))
def test_many_kills_of_both_sides(sides, tmp_path, seed):
    print(f"--seed {seed}")
    assert kill_at_random(sides, tmp_path, 5000, 20, seed) >= 20


@pytest.mark.faults
@pytest.mark.parametrize("point", POINTS)
def test_kill_at_each_point_of_a_step(sides, tmp_path, point):
    rng, port, steps = random.Random(point), free_port(), 400
    cloud = sides("cloud", "cloud", tmp_path / "c", port)
    edge = sides("edge", "edge", tmp_path / "e", port, steps)
    cloud.kill()
    kills = 0
    while kills < 10:
        cloud.start(point, rng.randrange(1, 8))
        ends = time.monotonic() + PATIENCE_S
        while cloud.process.poll() is None:
            assert time.monotonic() < ends, cloud.text()
            assert edge.process.poll() is None, edge.text()
            time.sleep(0.01)
        assert cloud.process.returncode == -signal.SIGKILL, cloud.text()
        kills += 1
    cloud.start()
    check_done(edge, cloud)
    check_ledger(tmp_path / "c", steps)


@pytest.mark.faults
def test_older_process_that_wakes_up_is_fenced(sides, tmp_path):
    """A copy of the edge goes on elsewhere; the first one was only asleep."""
    port, steps = free_port(), 5000
    cloud = sides("cloud", "cloud", tmp_path / "c", port)
    zombie = sides("zombie", "edge", tmp_path / "e", port, steps)
    poll(lambda: committed(tmp_path / "c") > 200, PATIENCE_S)
    zombie.process.send_signal(signal.SIGSTOP)
    shutil.copytree(tmp_path / "e", tmp_path / "copy")
    edge = sides("edge", "edge", tmp_path / "copy", port, steps)
    poll(lambda: committed(tmp_path / "c") > 1000, PATIENCE_S)
    zombie.process.send_signal(signal.SIGCONT)
    assert zombie.process.wait(PATIENCE_S) != 0
    assert "Fenced" in zombie.text()
    check_done(edge, cloud)
    check_ledger(tmp_path / "c", steps)


@pytest.mark.faults
def test_disk_that_is_full_twenty_times(sides, tmp_path):
    """Nothing is acknowledged that is not written, and it goes on."""
    port, steps = free_port(), 5000
    cloud = sides("cloud", "cloud", tmp_path / "c", port)
    edge = sides("edge", "edge", tmp_path / "e", port, steps)
    readable = 0
    for i in range(20):
        poll(
            lambda least=i * 200: committed(tmp_path / "c") > least, PATIENCE_S
        )
        limit_files(cloud.process.pid, 100)
        # The commit in flight may still be one from before.
        time.sleep(0.2)
        before = committed(tmp_path / "c")
        time.sleep(0.3)
        readable += committed(tmp_path / "c") == before
        # What is acknowledged is forgotten by the edge.
        kept = min(
            (int(p.name[:20]) for p in (tmp_path / "e/journal").iterdir()),
            default=0,
        )
        assert kept <= before
        limit_files(cloud.process.pid, resource.RLIM_INFINITY)
    assert readable == 20
    check_done(edge, cloud)
    check_ledger(tmp_path / "c", steps)


def limit_files(pid, num_bytes):
    """From now on a process cannot write files larger than that."""
    resource.prlimit(
        pid, resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY)
    )
