"""The examples run as a reader would run them."""

import json
import pathlib
import re
import subprocess
import sys

import keras
import pytest

import keras_earlyexit as ee

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


ROW = r"│ (exit_0|exit_1|final|mean|0\.1|min)\s+│\s+([\d.]+)\s+│\s+([\d.]+)"


@pytest.mark.parametrize(
    ("name", "least"), [("segmentation", 90), ("tagging", 94)]
)
def test_heads_with_positions(name, least):
    shown = run(EXAMPLES / f"{name}.py")
    rows = {row[0]: row[1:] for row in re.findall(ROW, shown)}
    assert set(rows) == {"exit_0", "exit_1", "final", "mean", "0.1", "min"}
    assert float(rows["final"][1]) > least
    for reduce in ("mean", "0.1", "min"):
        assert float(rows[reduce][1]) < float(rows["final"][0])


def test_risk_control(tmp_path):
    run(
        EXAMPLES / "risk_control.py",
        *("--epochs", 2, "--draws", 3, "--output", tmp_path),
    )
    rows = json.loads((tmp_path / "figures.json").read_text())
    assert len(rows) == 30
    assert (tmp_path / "risk_control.png").stat().st_size > 5000


def test_tuning(tmp_path):
    shown = run(
        EXAMPLES / "tuning.py",
        *("--budget", 0.6, "--epsilon", 0.1, "--output", tmp_path),
    )
    assert "proven to be the best" in shown
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["configurations"] > 10_000
    assert found["cost"] < 1 and found["accuracy"] > 0.85
    assert (tmp_path / "front.png").stat().st_size > 5000
    model = keras.models.load_model(tmp_path / "tuned.keras")
    assert list(model.exit_layers) == found["exits"]


def test_compare(tmp_path):
    shown = run(
        EXAMPLES / "compare.py",
        *("--objectives", "branchynet", "boosted"),
        *("--jei-costs", 0.3, "--output", tmp_path),
    )
    assert "patience" in shown and "boosted" in shown
    rows = json.loads((tmp_path / "digits" / "jei.json").read_text())
    assert 0 < rows[0]["cost"] < 1.1


def test_drift(tmp_path):
    run(
        EXAMPLES / "drift.py",
        *("--epochs", 2, "--orders", 3, "--policies", "max_probability"),
        *("--output", tmp_path),
    )
    rows = json.loads((tmp_path / "figures.json").read_text())
    found = {row["traffic"]: row["alarms"] for row in rows}
    assert len(rows) == 10 and found["noise, strong"] == 3
    assert (tmp_path / "drift.png").stat().st_size > 5000


def test_split_inference(tmp_path):
    shown = run(EXAMPLES / "split_inference.py", "--output", tmp_path)
    assert "same exit as the undivided model: 100.00%" in shown
    assert "degraded" not in shown
    shares = re.findall(
        r"│ (?:exit_0|exit_1|final)\s+│\s+\w+ │\s+([\d.]+)%", shown
    )
    assert sum(map(float, shares)) == pytest.approx(100, abs=0.2)


def test_split_training(tmp_path):
    out = tmp_path / "out"
    shown = run(
        EXAMPLES / "split_training.py",
        *("--data", "digits", "--epochs", 2, "--output", out),
    )
    assert "edge and cloud" in shown and "all in the cloud" in shown
    summary = json.loads((out / "summary.json").read_text())
    # 1,000 samples in batches of 64, twice.
    assert summary["batches"] == 32
    assert 0 < summary["bytes_down"] <= 256 * 32
    merged = keras.models.load_model(out / "merged.keras")
    assert isinstance(merged, ee.EarlyExitModel)
    assert merged.exit_names == ("exit_0", "exit_1", "final")


ALONE = r"│ (\w+) alone\s+│\s+([\d.]+)%\s+│\s+([\d.]+)\s+│\s+([\d.]+)%"
ROUTED = r"│ routed\s+│\s+([\d.]+)%\s+│\s+([\d.]+)"


@pytest.mark.parametrize(
    ("name", "flags", "least"),
    [
        ("tabular", (), 90),
        ("text", ("--epochs", 2), 80),
        pytest.param(
            *("pretrained", ("--epochs", 1, "--exit-epochs", 2), 10),
            marks=pytest.mark.long,
        ),
    ],
)
def test_kinds_of_data(name, flags, least, tmp_path):
    if name == "pretrained":
        flags = (*flags, "--output", tmp_path)
    shown = run(EXAMPLES / f"{name}.py", *flags)
    rows = re.findall(ALONE, shown)
    assert [row[0] for row in rows] == ["exit_0", "exit_1", "final"]
    assert sum(float(row[3]) for row in rows) == pytest.approx(100, abs=0.2)
    accuracy, cost = map(float, re.search(ROUTED, shown).groups())
    assert accuracy >= least and 0 < cost < 1.2
    if name == "pretrained":
        assert "own answers are the same: True" in shown
        assert keras.models.load_model(tmp_path / "model.keras").exit_layers


@pytest.mark.long
def test_whole_story(tmp_path):
    shown = run(
        EXAMPLES / "whole_story.py",
        *("--epochs", 1, "--exit-epochs", 1, "--output", tmp_path),
    )
    assert "same exit as the undivided model: 100.00%" in shown
    assert "degraded" not in shown
    assert (tmp_path / "cut" / "segment_1" / "manifest.json").exists()


@pytest.mark.long
def test_export_litert(tmp_path):
    shown = run(
        EXAMPLES / "export_litert.py", "--epochs", 2, "--output", tmp_path
    )
    sizes = re.findall(r"│ LiteRT, (\w+)\s+│.*│\s+([\d,]+) kB", shown)
    assert [name for name, _ in sizes] == ["float32", "float16", "int8"]
    large, middle, small = (int(x.replace(",", "")) for _, x in sizes)
    assert small < middle < large


@pytest.mark.long
def test_privacy_probe(tmp_path):
    shown = run(
        EXAMPLES / "privacy_probe.py", "--epochs", 3, "--output", tmp_path
    )
    found = re.findall(r"│ (exit_\d)\s+│ \d+\s+│ 64\s+│ ([\d.]+)", shown)
    assert [name for name, _ in found] == ["exit_0", "exit_1", "exit_2"]
    assert all(0.1 < float(x) <= 1 for _, x in found)
    assert (tmp_path / "rebuilt.png").stat().st_size > 5000
