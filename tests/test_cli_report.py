"""`keras-earlyexit report`: the page, what it prints, its errors."""

import json

import keras
import numpy as np
import pytest

import keras_earlyexit as ee
from keras_earlyexit import cli
from keras_earlyexit.cli import ExitCode


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with an exit, and a file of samples."""
    folder = tmp_path_factory.mktemp("report")
    inputs = keras.Input((4,))
    x = keras.layers.Dense(8, activation="relu", name="first")(inputs)
    x = keras.layers.Dense(8, activation="relu", name="second")(x)
    outputs = keras.layers.Dense(3, activation="softmax")(x)
    plain = keras.Model(inputs, outputs, name="small")
    plain.save(folder / "plain.keras")
    ee.add_exits(plain, ["first"], policy="max_probability").save(
        folder / "model.keras"
    )
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("test", "calibration"):
        arrays[f"x_{split}"] = rng.normal(size=(60, 4)).astype("float32")
        arrays[f"y_{split}"] = rng.integers(0, 3, 60)
    np.savez(folder / "data.npz", **arrays)
    np.savez(folder / "labels.npz", x=arrays["x_test"], y=np.full(60, 7))
    return folder


@pytest.fixture
def run(folder, capsys, monkeypatch):
    """Runs the command in the folder: (exit status, output, errors)."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(folder)

    def call(*arguments):
        status = cli.main(["report", *map(str, arguments)])
        written = capsys.readouterr()
        return status, written.out, written.err

    return call


GIVEN = ("model.keras", "--data", "data.npz", "-o", "report.html")


def test_page_is_written(run, folder):
    status, output, errors = run(
        *GIVEN,
        *("--calibration", "calibration", "--reference", "static=0.5@0.7"),
        *("--class-names", "red,green,blue", "--seed", "3", "--no-time"),
        "--json",
    )
    assert (status, errors) == (ExitCode.OK, "")
    facts = json.loads(output)
    assert facts["samples"] == facts["calibration samples"] == 60
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert len(page.encode()) == facts["bytes"]
    for text in ("green", "static", "chosen on 60", "keras-earlyexit"):
        assert text in page
    status, _, errors = run(*GIVEN)
    assert status == ExitCode.INPUT and "--overwrite" in errors


def test_dry_run_writes_nothing(run, folder):
    status, output, _ = run(*GIVEN[:-1], "other.html", "--dry-run")
    assert status == ExitCode.OK and "Nothing written" in output
    assert not (folder / "other.html").exists()


@pytest.mark.parametrize(
    "changes, status, message",
    [
        (["--reference", "0.9"], ExitCode.USAGE, "ResNet=0.98"),
        (["--reference", "a=b"], ExitCode.USAGE, "Expected a number"),
        (["--reference", "a=nan"], ExitCode.USAGE, "Expected a number"),
        (["--levels", "0.1,x"], ExitCode.USAGE, "Expected a number"),
        (["--levels", "5"], ExitCode.USAGE, "between 0 and 1"),
        (["--data", "labels.npz"], ExitCode.INPUT, "labels from 7 to 7"),
        (["--split", "nowhere"], ExitCode.INPUT, "Expected a split"),
        (["--class-names", "a"], ExitCode.INPUT, "3 names"),
        (["-o", "report.pdf"], ExitCode.USAGE, ".html"),
        (["--model", "plain.keras"], ExitCode.INPUT, "a model with exits"),
        (["--model", "none.keras"], ExitCode.INPUT, "no file"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(run, changes, status, message):
    # What is given last counts.
    given = ["--model", *GIVEN[:-1], "page.html", "--dry-run", *changes]
    found, _, errors = run(*given)
    assert found == status, errors
    assert message in errors and "Traceback" not in errors
