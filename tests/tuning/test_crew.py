"""Processes that are kept alive, and end together."""

import os
import subprocess
import sys

import pytest
from waiting import poll

from keras_earlyexit.tuning import crew

# The name of the process is what it does.
SCRIPT = """
import os, pathlib, sys, time
from keras_earlyexit import supervision
from keras_earlyexit.tuning import crew
supervision.end_with_parent()
name = os.environ["KERASTUNER_TUNER_ID"]
with open(f"{name}.starts", "a") as file:
    file.write(f"{os.getpid()} {crew.role()}\\n")
starts = len(pathlib.Path(f"{name}.starts").read_text().splitlines())
print("working as", name, file=sys.stderr)
if name == "chief" and "CHIEF_ENDS" in os.environ:
    sys.exit(5 if starts == 1 else 0)
if name == "chief" or name.startswith("stays"):
    time.sleep(600)
if name.startswith("dies-once") and starts == 1:
    os.kill(os.getpid(), 9)
if name.startswith("always-dies"):
    sys.exit(5)
if name.startswith("cannot"):
    sys.exit(4)
"""


def make(folder, names, monkeypatch, **options):
    monkeypatch.chdir(folder)
    script = folder / "script.py"
    script.write_text(SCRIPT)
    told = []
    made = crew.Crew(
        [sys.executable, str(script)],
        names,
        ("127.0.0.1", 1),
        folder / "logs",
        tell=told.append,
        **options,
    )
    return made, told


def pids(folder, name):
    lines = (folder / f"{name}.starts").read_text().splitlines()
    return [int(line.split()[0]) for line in lines]


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_who_dies_comes_back(tmp_path, monkeypatch):
    made, told = make(tmp_path, ["dies-once", "works"], monkeypatch)
    made.run()
    assert len(pids(tmp_path, "dies-once")) == 2
    assert len(pids(tmp_path, "works")) == 1
    assert "dies-once has ended with signal 9; starting it again" in told
    # The chief has nobody left to work for.
    (chief,) = pids(tmp_path, "chief")
    assert not is_alive(chief)
    roles = (tmp_path / "chief.starts").read_text().split()[1]
    assert roles == "chief"
    log = (tmp_path / "logs" / "dies-once.log").read_text()
    assert log.count("working as dies-once") == 2


def test_without_a_chief(tmp_path, monkeypatch):
    made, _ = make(tmp_path, ["works"], monkeypatch, has_chief=False)
    made.run()
    assert (tmp_path / "works.starts").read_text().split()[1] == "worker"
    assert not (tmp_path / "chief.starts").exists()


def test_a_chief_of_others_is_kept_alive(tmp_path, monkeypatch):
    monkeypatch.setenv("CHIEF_ENDS", "after it has died once")
    made, told = make(tmp_path, [], monkeypatch)
    asked = []
    made.run(lambda: asked.append("how many") or 0, wait_for_chief=True)
    assert len(pids(tmp_path, "chief")) == 2
    assert "chief has ended with status 5; starting it again" in told
    assert told.count("waiting for workers of other machines") == 1
    # What the others have done is told while they are at work.
    assert len(asked) >= 2


@pytest.fixture
def impatient(monkeypatch):
    """The chief of another machine is given up sooner."""
    for name, seconds in (("LOOK", 0.1), ("DONE", 0.5), ("GONE", 3.0)):
        monkeypatch.setattr(crew, f"_{name}_S", seconds)


def test_who_joins_does_not_wait_for_a_search_that_is_over(
    tmp_path, monkeypatch, impatient
):
    monkeypatch.setattr(crew, "_GONE_S", 60.0)
    options = {"has_chief": False, "joins": True}
    made, told = make(tmp_path, ["works", "stays"], monkeypatch, **options)
    made.run()
    assert "nobody listens at 127.0.0.1:1 now; waiting" in told
    for name in ("works", "stays"):
        (pid,) = pids(tmp_path, name)
        assert not is_alive(pid)


def test_who_joins_is_told_that_nobody_listens(
    tmp_path, monkeypatch, impatient
):
    options = {"has_chief": False, "joins": True}
    made, _ = make(tmp_path, ["stays"], monkeypatch, **options)
    with pytest.raises(crew.CrewError, match="listens at 127.0.0.1:1"):
        made.run()


@pytest.mark.parametrize(
    ("name", "message", "starts"),
    [
        ("always-dies", "'always-dies' has ended with status 5, the last", 7),
        ("cannot", "'cannot' has ended with status 4: working as cannot", 1),
    ],
)
def test_who_cannot_work(tmp_path, monkeypatch, name, message, starts):
    made, _ = make(tmp_path, [name], monkeypatch, has_chief=False)
    with pytest.raises(crew.CrewError, match=message):
        made.run()
    assert len(pids(tmp_path, name)) == starts


def test_trials_that_end_are_a_reason_to_go_on(tmp_path, monkeypatch):
    made, _ = make(tmp_path, ["always-dies"], monkeypatch, has_chief=False)
    ended = iter([*range(3), *[3] * 1000])
    with pytest.raises(crew.CrewError):
        made.run(lambda: next(ended))
    assert len(pids(tmp_path, "always-dies")) > 7


def test_none_outlives_the_one_that_started_them(tmp_path):
    starter = (
        "import sys; from keras_earlyexit.tuning import crew; crew.Crew("
        "[sys.executable, 'script.py'], ['stays'], ('127.0.0.1', 1), 'logs')"
        ".run()"
    )
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, "-c", starter], cwd=tmp_path)
    try:
        for name in ("stays", "chief"):
            file = tmp_path / f"{name}.starts"
            poll(lambda file=file: file.exists() and file.read_text(), 60)
    finally:
        process.kill()
        process.wait()
    for name in ("stays", "chief"):
        (pid,) = pids(tmp_path, name)
        poll(lambda pid=pid: not is_running(pid), 60)


def is_running(pid):
    """Whether a process runs; a zombie, which nobody waits for, does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
