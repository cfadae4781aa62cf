"""Guards that are switched off have to turn a test red, each a named one.

A copy of the tree is changed in one place, and the test is run on it.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PARTS = ("cloud_worker", "edge_worker", "keras_earlyexit", "protos", "tests")
GUARDS = {
    "late requests are dropped": (
        "cloud_worker/batching.py",
        "dropped = [item for item in self._items if item.deadline <= now]",
        "dropped = []",
        "tests/cloud_worker/test_batching.py"
        "::test_what_is_past_its_deadline_does_not_run",
    ),
    "halves are compared": (
        "protos/identity.py",
        "if ours != theirs",
        "if ours != theirs and False",
        "tests/cloud_worker/test_servicer.py"
        "::test_other_halves_are_refused_with_what_differs",
    ),
    "lengths are compared": (
        "protos/tensors.py",
        "if len(data) != num_bytes:",
        "if False:",
        "tests/protos/test_hostile_tensors.py",
    ),
    "a share is kept to": (
        "edge_worker/capping.py",
        "allowed = min(allowed, int(self._by_share))",
        "pass",
        "tests/edge_worker/test_capping.py::test_share_of_the_rows",
    ),
    "raw cuts are refused": (
        "edge_worker/config.py",
        "if manifest.raw_cut and not self.allow_raw_input:",
        "if False:",
        "tests/edge_worker/test_offloading.py::test_a_raw_cut_is_refused",
    ),
    "what was applied is not applied again": (
        "cloud_worker/training/learner.py",
        "if sequence != edge.expected:",
        "if sequence > edge.expected:",
        "tests/training/test_learner.py::test_histories",
    ),
    "older runs of an edge are fenced": (
        "cloud_worker/training/learner.py",
        "if edge is not None and epoch < edge.epoch:",
        "if False:",
        "tests/training/test_learner.py"
        "::test_older_runs_are_fenced_also_after_a_restart",
    ),
    "exceptions stay here": (
        "protos/errors.py",
        "    return _BROKEN\n",
        "    return _BROKEN[0], str(error)\n",
        "tests/cloud_worker/test_hostile.py::test_an_exception_leaves_no_text",
    ),
}


@pytest.mark.faults
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", GUARDS)
def test_a_guard_that_is_off_is_noticed(name, tmp_path):
    file, old, new, test = GUARDS[name]
    for part in PARTS:
        shutil.copytree(ROOT / part, tmp_path / part)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert run(tmp_path, test) == 0, "the test fails with its guard on"
    text = (tmp_path / file).read_text(encoding="utf-8")
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new), encoding="utf-8")
    assert run(tmp_path, test) == 1


def run(root, test):
    """The exit status of pytest on a copy of the tree."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", test],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        timeout=500,
        check=False,
    ).returncode
