"""The examples run as a reader would run them."""

import json
import pathlib
import re
import subprocess
import sys

import keras
import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="the examples measure TensorFlow",
)


def run(*arguments):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_quickstart():
    shown = run(EXAMPLES / "quickstart.py")
    accuracy, cost = re.search(
        r"accuracy ([\d.]+)% at ([\d.]+)% of the plain cost", shown
    ).groups()
    assert float(accuracy) > 93
    assert float(cost) < 60


def test_demo(tmp_path):
    shown = run(EXAMPLES / "demo.py", "--epochs", 2, "--output", tmp_path)
    assert "routed" in shown
    rows = json.loads((tmp_path / "figures.json").read_text())
    assert [row["name"] for row in rows] == [
        "plain",
        "exit_0",
        "exit_1",
        "final",
        "routed",
    ]
    assert sum(rows[-1]["shares"]) == pytest.approx(1)
    assert (tmp_path / "accuracy_cost.png").stat().st_size > 5000
    keras.models.load_model(tmp_path / "model.keras")
