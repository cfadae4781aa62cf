"""`calibrate`, `bench` and `export`: their results, and what they refuse."""

import json

import cli_parts
import keras
import numpy as np
import pytest

import keras_earlyexit as ee
from keras_earlyexit import cli
from keras_earlyexit.cli import ExitCode, routed_runs

DATA = ("--data", "cli_parts:data")
WIDER = ("--names", "zebra", "-o", "wider.keras")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = ee.add_exits(
        cli_parts.network((6,), 3), ["hidden_0"], policy="max_probability"
    )
    model.compile("adam", "branchynet")
    x = np.random.default_rng(1).normal(size=(600, 6)).astype("float32")
    y = np.arange(600) % 3
    x += 3 * np.eye(3, dtype="float32")[y].repeat(2, axis=1)
    model.fit(x, y, epochs=6, verbose=0)
    return model


@pytest.fixture
def run(capsys, monkeypatch, tmp_path, model):
    """Runs the command in a folder with a model."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    model.save("m.keras")

    def call(*arguments):
        status = cli.main([str(argument) for argument in arguments])
        written = capsys.readouterr()
        return status, written.out, written.err

    return call


def threshold_of(path):
    return keras.models.load_model(path).policy.threshold


def test_calibrate_in_place(run, model):
    options = ("--epsilon", 0.2, "--delta", 0.2, "--risk", "performance_gap")
    status, output, errors = run("calibrate", "m.keras", *DATA, *options)
    assert status == ExitCode.OK, errors
    expected = ee.calibrate(
        keras.models.load_model("m.keras"),
        *cli_parts.data(),
        epsilon=0.2,
        delta=0.2,
        risk="performance_gap",
    )
    assert threshold_of("m.keras") == expected.threshold != 0.9
    assert str(expected).split() == output.split("Wrote")[0].split()
    # All that was in the file is there still.
    loaded = keras.models.load_model("m.keras")
    assert loaded.optimizer.iterations == model.optimizer.iterations
    assert loaded.objective.name == "branchynet"


def test_calibrate_to_a_budget_as_json(run):
    status, output, _ = run(
        *("calibrate", "m.keras", *DATA, "--budget", 0.7, "--json"),
        *("-o", "other.keras"),
    )
    facts = json.loads(output)
    assert status == ExitCode.OK and facts["file"] == "other.keras"
    assert facts["expected_relative_cost"] <= 0.7
    assert threshold_of("m.keras") == 0.9
    assert list(threshold_of("other.keras")) == facts["threshold"]


def test_calibrate_says_that_nothing_can_be_promised(run):
    status, _, errors = run(
        *("calibrate", "m.keras", *DATA, "--epsilon", 0.001, "--dry-run")
    )
    assert status == ExitCode.OK
    assert errors.startswith("keras-earlyexit: ") and errors.count("\n") == 1
    assert threshold_of("m.keras") == 0.9


def test_bench_of_a_model(run):
    status, output, errors = run(
        *("bench", "m.keras", *DATA, "--batch-sizes", "1,8"),
        *("--repeats", 2, "-o", "profile.json"),
    )
    assert status == ExitCode.OK, errors
    for text in (
        *("stage to exit_0", "leaving at final", "plain model", "batch 8"),
        *("times as fast", "relative cost", "Wrote profile.json"),
    ):
        assert text in output
    profile = ee.cost.DeviceProfile.load("profile.json")
    assert profile.batch_sizes == (1, 8)
    assert profile.stage_names == ("exit_0", "final")


def test_bench_of_a_bundle_as_json(run):
    assert run("export", "m.keras", "-o", "b")[0] == ExitCode.OK
    status, output, errors = run(
        *("bench", "b", *DATA, "--batch-sizes", "4", "--repeats", 1, "--json")
    )
    assert status == ExitCode.OK, errors
    facts = json.loads(output)
    assert facts["profile"]["machine"]["backend"] == "litert"
    (routed,) = facts["routed"]
    assert routed["reference"] == "whole bundle"
    assert routed["routed_seconds"] > 0


def test_routed_runs_are_timed_in_turn(model):
    x, _ = cli_parts.data()
    ticks = iter(range(100_000))
    found = routed_runs.compare(model, x, 8, 3, clock=lambda: next(ticks))
    assert found["routed_seconds"] == found["reference_seconds"] == 1
    parts = [x[i : i + 8] for i in np.linspace(0, 112, 15).astype(int)]
    costs = [model.predict_exits(part).mean_cost for part in parts]
    assert found["mean_cost"] == pytest.approx(np.mean(costs))


def test_bench_without_data_or_exits(run):
    cli_parts.network((6,), 3).save("plain.keras")
    status, output, _ = run(
        *("bench", "plain.keras", "--batch-sizes", "2", "--repeats", 1)
    )
    assert status == ExitCode.OK and "stage to final" in output
    assert "times as fast" not in output


def test_export(run):
    status, output, errors = run(
        *("export", "m.keras", "-o", "b", *DATA, "--class-names", "a, b, c"),
        "--json",
    )
    assert status == ExitCode.OK, errors
    facts = json.loads(output)
    assert facts["samples"] == 120 and facts["agreement"] == 1
    bundle = ee.load_bundle("b")
    assert list(bundle.manifest.class_names) == ["a", "b", "c"]
    status, _, errors = run("export", "m.keras", "-o", "b")
    assert status == ExitCode.INPUT and "--overwrite" in errors
    status, output, _ = run(
        *("export", "m.keras", "-o", "b", "--overwrite"),
        *("--cut", "exit_0", "--format", "keras"),
    )
    assert status == ExitCode.OK
    assert "b/segment_0" in output and "b/segment_1" in output


def test_dry_runs_write_nothing(run, tmp_path):
    for command in (
        ("export", "--cut", "exit_0", "--json"),
        ("bench", "--batch-sizes", "4,2", "--json"),
    ):
        status, output, _ = run(*command, "--model", "m.keras", "--dry-run")
        assert status == ExitCode.OK
        facts = json.loads(output)
        assert facts.get("segments", 2) == 2
        assert facts.get("batch_sizes", [2, 4]) == [2, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["m.keras"]


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        (("calibrate", *DATA, "--epsilon", 3), ExitCode.INPUT, "epsilon"),
        (("calibrate", *DATA, "--risk", "x"), ExitCode.INPUT, "consistency"),
        (("calibrate", *DATA, "--policy", "x"), ExitCode.INPUT, "policy"),
        (("calibrate",), ExitCode.USAGE, "--data"),
        (("calibrate", "--data", "digits"), ExitCode.INPUT, "shape (6,)"),
        (
            ("calibrate", *DATA, "--budget", 0.7, "--max-cost", 0.7),
            *(ExitCode.USAGE, "--budget, or"),
        ),
        (("bench", "--batch-sizes", "1,x"), ExitCode.USAGE, "1,32,256"),
        (("bench", "-o", "p.txt"), ExitCode.USAGE, "ends in .json"),
        (("export", "--format", "tflite"), ExitCode.USAGE, "litert"),
        (("export", "--cut", "exit_7"), ExitCode.USAGE, "exit_7"),
        (("export", "--quantize", "int8"), ExitCode.USAGE, "--data"),
        (("export", "--class-names", "a"), ExitCode.INPUT, "3 strings"),
        (("export", "-o", "none/b"), ExitCode.INPUT, "no folder"),
        (
            ("export", "-o", "m.keras", "--overwrite", "--dry-run"),
            *(ExitCode.INPUT, "bundles only"),
        ),
        (("widen", *WIDER, "--names", "a,a"), ExitCode.INPUT, "each name once"),
        (("widen", *WIDER, "--data", "digits"), ExitCode.INPUT, "shape (6,)"),
        (("widen", *WIDER, "--data", "cli_parts"), ExitCode.INPUT, "spelling"),
    ],
)
def test_what_the_user_can_mend(run, tmp_path, command, status, message):
    found, _, errors = run(*command, "--model", "m.keras")
    assert (found, message in errors) == (status, True), errors
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["m.keras"]


def test_merge(run, model, tmp_path):
    for name, segment in zip("ab", ee.split(model, "exit_0"), strict=True):
        segment.save(f"{name}.keras")
    given = ("merge", "a.keras", "b.keras", "-o", "merged.keras")
    status, output, errors = run(*given, "--dry-run")
    assert status == ExitCode.OK, errors
    assert "Nothing written" in output
    assert not (tmp_path / "merged.keras").exists()
    status, output, errors = run(*given, "--json")
    assert status == ExitCode.OK, errors
    assert json.loads(output)["exits"] == ["exit_0", "final"]
    x, _ = cli_parts.data()
    merged = keras.models.load_model("merged.keras")
    np.testing.assert_allclose(merged.predict(x), model.predict(x), rtol=1e-5)
    status, _, errors = run("merge", "m.keras", "b.keras", "-o", "no.keras")
    assert status == ExitCode.INPUT and "`ee.split`" in errors


def test_a_bundle_is_told_from_a_folder(run):
    assert run("export", "m.keras", "-o", "b")[0] == ExitCode.OK
    for command in (("info",), ("calibrate", *DATA)):
        status, _, errors = run(*command, "--model", "b")
        assert status == ExitCode.INPUT and "'b' is a bundle" in errors


@pytest.mark.parametrize("command", ["calibrate", "export"])
def test_a_model_without_exits(run, command):
    cli_parts.network((6,), 3).save("plain.keras")
    data = DATA if command == "calibrate" else ()
    status, _, errors = run(command, "plain.keras", *data)
    assert status == ExitCode.INPUT
    assert "keras-earlyexit train" in errors
