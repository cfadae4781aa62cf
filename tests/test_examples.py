"""The examples run as a reader would run them."""

import contextlib
import io
import json
import pathlib
import re
import runpy
import subprocess
import sys

import keras
import pytest

import keras_earlyexit as ee

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"

LONG = pytest.mark.long
pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="the examples measure TensorFlow",
)


def run(name, *arguments):
    """What an example prints; each program needs seconds to start alone."""
    path, shown = str(EXAMPLES / f"{name}.py"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [path, *map(str, arguments)])
        # Some are made of the steps of others.
        patch.syspath_prepend(EXAMPLES)
        with contextlib.redirect_stdout(shown):
            runpy.run_path(path, run_name="__main__")
    return shown.getvalue()


def run_alone(name, *arguments):
    """The same in a process of its own, as a reader would run it."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """What the demo has printed, and the folder with all that it wrote."""
    folder = tmp_path_factory.mktemp("demo")
    quick = ("--depth", 8, "--epochs", 4)
    return run("demo", *quick, "--output", folder), folder


@pytest.fixture(params=["of_the_demo", pytest.param("own", marks=LONG)])
def trained(request):
    """Options: the model that the demo has trained, or one of its own."""
    if request.param == "own":
        return ()
    _, folder = request.getfixturevalue("demo")
    return ("--model", folder / "model.keras")


@LONG
def test_quickstart():
    shown = run_alone("quickstart")
    accuracy, cost = re.search(
        r"accuracy ([\d.]+)% at ([\d.]+)% of the plain cost", shown
    ).groups()
    assert float(accuracy) > 93
    assert float(cost) < 60


def test_demo(demo):
    shown, folder = demo
    assert "routed" in shown
    rows = json.loads((folder / "figures.json").read_text())
    assert [row["name"] for row in rows] == [
        "plain",
        "exit_0",
        "exit_1",
        "final",
        "routed",
    ]
    assert sum(rows[-1]["shares"]) == pytest.approx(1)
    assert (folder / "accuracy_cost.png").stat().st_size > 5000
    keras.models.load_model(folder / "model.keras")


ROW = r"│ (exit_0|exit_1|final|mean|0\.1|min)\s+│\s+([\d.]+)\s+│\s+([\d.]+)"


@LONG
@pytest.mark.parametrize(
    ("name", "epochs", "least"), [("segmentation", 5, 85), ("tagging", 2, 88)]
)
def test_heads_with_positions(name, epochs, least):
    shown = run(name, "--epochs", epochs)
    rows = {row[0]: row[1:] for row in re.findall(ROW, shown)}
    assert set(rows) == {"exit_0", "exit_1", "final", "mean", "0.1", "min"}
    assert float(rows["final"][1]) > least
    for reduce in ("mean", "0.1", "min"):
        assert float(rows[reduce][1]) < float(rows["final"][0])


def test_risk_control(trained, tmp_path):
    run(
        "risk_control",
        *("--epochs", 2, "--draws", 3, "--sizes", 397, "--output", tmp_path),
        *trained,
    )
    rows = json.loads((tmp_path / "figures.json").read_text())
    assert len(rows) == 30
    for row in rows:
        assert 0 < row["split"]["cost"] <= 1.3
        assert 0 <= row["replaced"]["missed"] <= 1
    assert (tmp_path / "risk_control.png").stat().st_size > 5000


@LONG
def test_tuning(tmp_path):
    shown = run(
        "tuning",
        *("--budget", 0.6, "--epsilon", 0.1, "--output", tmp_path),
    )
    assert "proven to be the best" in shown
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["configurations"] > 10_000
    assert found["cost"] < 1 and found["accuracy"] > 0.85
    assert (tmp_path / "front.png").stat().st_size > 5000
    model = keras.models.load_model(tmp_path / "tuned.keras")
    assert list(model.exit_layers) == found["exits"]


@LONG
def test_compare(tmp_path):
    shown = run(
        "compare",
        *("--quick", "--objectives", "branchynet", "boosted"),
        *("--jei-costs", 0.3, "--output", tmp_path),
    )
    assert "patience" in shown and "boosted" in shown
    rows = json.loads((tmp_path / "digits" / "jei.json").read_text())
    assert 0 < rows[0]["cost"] < 1.1


@LONG
def test_drift(tmp_path):
    run(
        "drift",
        *("--epochs", 2, "--orders", 3, "--policies", "max_probability"),
        *("--output", tmp_path),
    )
    rows = json.loads((tmp_path / "figures.json").read_text())
    found = {row["traffic"]: row["alarms"] for row in rows}
    assert len(rows) == 10 and found["noise, strong"] == 3
    assert (tmp_path / "drift.png").stat().st_size > 5000


def test_split_inference(trained, tmp_path):
    shown = run("split_inference", "--output", tmp_path, *trained)
    assert "same exit as the undivided model: 100.00%" in shown
    assert "degraded" not in shown
    shares = re.findall(
        r"│ (?:exit_0|exit_1|final)\s+│\s+\w+ │\s+([\d.]+)%", shown
    )
    assert sum(map(float, shares)) == pytest.approx(100, abs=0.2)


@LONG
def test_split_training(tmp_path):
    out = tmp_path / "out"
    shown = run_alone(
        "split_training",
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
        pytest.param("text", ("--epochs", 2), 80, marks=LONG),
        pytest.param(
            *("pretrained", ("--epochs", 1, "--exit-epochs", 2), 10),
            marks=LONG,
        ),
    ],
)
def test_kinds_of_data(name, flags, least, tmp_path):
    if name == "pretrained":
        flags = (*flags, "--output", tmp_path)
    shown = run(name, *flags)
    rows = re.findall(ALONE, shown)
    assert [row[0] for row in rows] == ["exit_0", "exit_1", "final"]
    assert sum(float(row[3]) for row in rows) == pytest.approx(100, abs=0.2)
    accuracy, cost = map(float, re.search(ROUTED, shown).groups())
    assert accuracy >= least and 0 < cost < 1.2
    if name == "pretrained":
        assert "own answers are the same: True" in shown
        assert keras.models.load_model(tmp_path / "model.keras").exit_layers


def test_whole_story(tmp_path):
    shown = run(
        "whole_story",
        *("--epochs", 1, "--exit-epochs", 1, "--output", tmp_path),
    )
    assert "same exit as the undivided model: 100.00%" in shown
    assert "100.00% of the answers are those of one piece" in shown
    assert "degraded" not in shown
    assert (tmp_path / "cut" / "segment_1" / "manifest.json").exists()


@LONG
def test_export_litert(trained, tmp_path):
    shown = run("export_litert", "--epochs", 2, "--output", tmp_path, *trained)
    sizes = re.findall(r"│ LiteRT, (\w+)\s+│.*│\s+([\d,]+) kB", shown)
    assert [name for name, _ in sizes] == ["float32", "float16", "int8"]
    large, middle, small = (int(x.replace(",", "")) for _, x in sizes)
    assert small < middle < large


@LONG
def test_privacy_probe(trained, tmp_path):
    shown = run("privacy_probe", "--epochs", 3, "--output", tmp_path, *trained)
    found = re.findall(r"│ (exit_\d)\s+│ \d+\s+│ 64\s+│ ([\d.]+)", shown)
    assert [name for name, _ in found][:2] == ["exit_0", "exit_1"]
    assert all(0.1 < float(x) <= 1 for _, x in found)
    assert (tmp_path / "rebuilt.png").stat().st_size > 5000
