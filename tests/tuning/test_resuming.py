"""Searches that are killed, and go on."""

import os
import signal

import pytest
from tuning_commands import Tuning
from waiting import poll

from keras_earlyexit.tuning import crew

pytestmark = pytest.mark.faults


def test_a_killed_search_goes_on(tmp_path):
    """A real process, killed while a trial runs."""
    first = Tuning(tmp_path, "--trials", "3")
    try:
        first.wait_until(lambda: first.ended() and first.running())
    finally:
        first.kill()
    before = first.ended()
    assert 1 <= len(before) < 3
    written = [(t.folder / "exits.json").stat().st_mtime_ns for t in before]
    facts = Tuning(tmp_path, "--trials", "3").result()
    assert [trial["status"] for trial in facts["trials"]] == ["completed"] * 3
    # What had ended was not run again.
    for trial, time in zip(before, written, strict=True):
        assert (trial.folder / "exits.json").stat().st_mtime_ns == time
        attempts = (trial.folder / "attempts").read_text().splitlines()
        assert len(attempts) == 1
    assert (tmp_path / "best.keras").exists()


def test_a_killed_worker_comes_back(tmp_path):
    """A chief and two workers; one of them is killed in a trial."""
    search = Tuning(tmp_path, "--trials", "6", "--workers", "2")
    search.wait_until(lambda: search.ended() and len(search.running()) == 2)
    victim = search.workers()["worker-1"]
    os.kill(victim, signal.SIGKILL)
    search.wait_until(lambda: search.workers()["worker-1"] != victim)
    facts = search.result(600)
    statuses = [trial["status"] for trial in facts["trials"]]
    assert statuses == ["completed"] * 6
    assert "worker-1 has ended with signal 9; starting it again" in search.said
    names = [
        set((trial.folder / "attempts").read_text().split())
        for trial in search.ended()
    ]
    assert set.union(*names) == {"worker-0", "worker-1"}
    # The trial that was lost has been run again, by the same worker.
    attempts = [
        (trial.folder / "attempts").read_text().split()
        for trial in search.ended()
    ]
    assert max(map(len, attempts)) == 2
    for pid in search.workers().values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_nobody_outlives_the_one_that_started_them(tmp_path):
    search = Tuning(tmp_path, "--trials", "50", "--workers", "1")
    search.wait_until(search.ended)
    pids = list(search.workers().values())
    search.kill()

    def gone():
        return not any(map(is_alive, pids))

    poll(gone, 60)
    facts = Tuning(tmp_path, "--trials", "3").result()
    assert len(facts["trials"]) >= 3


def test_another_machine_runs_the_trials(tmp_path):
    """It joins by the network, which ends at this machine here."""
    place = f"127.0.0.1:{crew.free_port()}"
    given = ("--trials", "3")
    first = Tuning(tmp_path, *given, "--listen", place)
    other = Tuning(
        tmp_path, *given, "--join", place, "--workers", "1", name="other_"
    )
    try:
        # All of them are run there, and told here.
        first.wait_until(lambda: "1 of 3  trial" in first.said)
        facts = first.result(600)
        assert other.process.wait(120) == 0, other.said
    finally:
        first.kill()
        other.kill()
    statuses = [trial["status"] for trial in facts["trials"]]
    assert statuses == ["completed"] * 3
    assert set(first.workers()) == {"chief"} and len(other.workers()) == 1
    ran = [(t.folder / "attempts").read_text().split() for t in first.ended()]
    assert set(sum(ran, [])) <= set(other.workers())


def test_processes_share_a_database(tmp_path):
    """Two workers of one command, killed, and the same command again."""
    given = ("--storage", f"sqlite:///{tmp_path}/search.db", "--workers", "2")
    first = Tuning(tmp_path, "--trials", "4", *given)
    try:
        first.wait_until(lambda: first.ended() and len(first.running()) == 2)
    finally:
        first.kill()
    before, lost = len(first.ended()), {t.id for t in first.running()}
    again = Tuning(tmp_path, "--trials", "6", *given)
    facts = again.result(600)
    assert f"going on: {before} trials have ended before" in again.said
    # Two were lost, and were run again once they had been silent for long.
    statuses = [trial["status"] for trial in facts["trials"]]
    assert statuses == ["completed"] * 6
    assert lost <= {trial["id"] for trial in facts["trials"]}
    assert (tmp_path / "best.keras").exists()


def is_alive(pid):
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
