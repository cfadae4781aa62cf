"""The command: its tables, its JSON, its errors and exit statuses."""

import json
import os
import re
import subprocess
import sys

import keras
import pytest

from keras_earlyexit import cli
from keras_earlyexit.cli import ExitCode, doctor


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs the command in this process: (exit status, output, errors)."""
    # Wide enough that no cell of a table is wrapped.
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        status = cli.main([str(argument) for argument in arguments])
        written = capsys.readouterr()
        return status, written.out, written.err

    return call


@pytest.fixture
def plain(tmp_path):
    """A saved model of two convolutions: 8 * 8 * 4 * 9 = 2304 MACs in one."""
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, padding="same", name="first")(inputs)
    x = keras.layers.Conv2D(4, 3, padding="same", name="second")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(3, activation="softmax", name="head")(x)
    path = tmp_path / "plain.keras"
    keras.Model(inputs, outputs, name="small").save(path)
    return path


def test_help_names_every_command_and_exit_status(run):
    status, output, _ = run("--help")
    assert status == ExitCode.OK
    for command in ("info", "doctor"):
        assert command in output
    for code in ExitCode:
        assert re.search(rf"\b{int(code)}\b", output)


def test_version(run):
    status, output, _ = run("--version")
    assert status == ExitCode.OK
    assert re.fullmatch(r"keras-earlyexit \d+\.\d+\.\d+\S*\n", output)


def test_no_command_shows_the_help(run):
    status, output, errors = run()
    assert status == ExitCode.USAGE
    assert "doctor" in output + errors


def test_info_of_a_plain_model(run, plain):
    status, output, errors = run("info", plain)
    assert (status, errors) == (ExitCode.OK, "")
    for text in ("small", "(None, 8, 8, 1)", "first", "11,532", "2,304"):
        assert text in output
    assert "Exits" not in output


def test_info_lists_every_cut_and_layer_if_asked(run, plain):
    _, few, _ = run("info", plain)
    _, every, _ = run("info", plain, "--all")
    for name in ("second", "GlobalAveragePooling2D"):
        assert name not in few
        assert name in every


def test_info_as_json(run, plain):
    status, output, _ = run("info", plain, "--json")
    facts = json.loads(output)
    assert status == ExitCode.OK
    assert facts["params"] == keras.models.load_model(plain).count_params()
    assert facts["macs"] == 2304 + 4 * 2304 + 12
    assert facts["macs"] == sum(row["macs"] for row in facts["rows"])
    assert facts["reliable"] is True
    assert facts["exits"] is None
    first = facts["legal_cuts"][0]
    assert (first["name"], first["macs"]) == ("first", 2304)
    assert first["fraction"] == pytest.approx(2304 / facts["macs"])


def test_info_of_a_model_with_exits(run, plain, tmp_path):
    import keras_earlyexit as ee

    model = ee.add_exits(
        keras.models.load_model(plain),
        ["first"],
        policy=ee.policies.get("max_probability", threshold=float("inf")),
    )
    path = tmp_path / "exits.keras"
    model.save(path)
    _, output, _ = run("info", path)
    for text in ("exit_0", "final", "max_probability", "inf"):
        assert text in output
    _, output, _ = run("info", path, "--json")
    exits = json.loads(output)["exits"]
    early, final = exits["places"]
    assert exits["policy"] == "max_probability"
    assert early["layer"] == "first"
    assert early["threshold"] == "inf"
    assert early["relative_cost"] == pytest.approx(model.relative_costs[0])
    assert final["threshold"] is None


def test_info_says_why_there_is_no_legal_cut(run, tmp_path):
    inputs = keras.Input((4,))
    a = keras.layers.Dense(2, name="a")(inputs)
    b = keras.layers.Dense(2, name="b")(inputs)
    path = tmp_path / "two.keras"
    keras.Model(inputs, keras.layers.Add()([a, b])).save(path)
    status, output, _ = run("info", path)
    assert status == ExitCode.OK
    assert "No legal cut: nowhere" in output


def test_info_needs_a_file_that_exists(run, tmp_path):
    status, output, errors = run("info", tmp_path / "gone.keras")
    assert (status, output) == (ExitCode.INPUT, "")
    assert "There is no file" in errors and "gone.keras" in errors
    assert "Traceback" not in errors


def test_info_refuses_a_folder(run, tmp_path):
    status, _, errors = run("info", tmp_path)
    assert status == ExitCode.INPUT
    assert "is a folder" in errors


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_info_refuses_what_is_no_keras_file(run, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"not a model")
    status, _, errors = run("info", path)
    assert status == ExitCode.INPUT
    assert "not a Keras model" in errors
    assert "model.save" in errors


def test_info_runs_no_code_from_a_model_file(run, tmp_path):
    path = tmp_path / "lambda.keras"
    keras.Sequential(
        [keras.Input((2,)), keras.layers.Lambda(lambda x: x * 2)]
    ).save(path)
    status, _, errors = run("info", path)
    assert status == ExitCode.INPUT
    assert "Keras cannot load" in errors
    assert "Traceback" not in errors


def test_info_of_a_model_without_an_input_shape(run, tmp_path):
    path = tmp_path / "unbuilt.keras"
    with pytest.warns(UserWarning, match="not yet been built"):
        keras.Sequential([keras.layers.Dense(1)]).save(path)
    status, _, errors = run("info", path)
    assert status == ExitCode.INPUT
    assert "input shape is unknown" in errors


def test_info_of_several_inputs_and_outputs(run, tmp_path):
    inputs = [keras.Input((4,), name=name) for name in ("left", "right")]
    total = keras.layers.Add(name="total")(inputs)
    scaled = keras.layers.Rescaling(2.0, name="scaled")(inputs[0])
    path = tmp_path / "several.keras"
    keras.Model(inputs, [total, scaled]).save(path)
    _, output, _ = run("info", path, "--json")
    facts = json.loads(output)
    assert facts["inputs"] == {"left": [None, 4], "right": [None, 4]}
    assert facts["outputs"] == {"total": [None, 4], "scaled": [None, 4]}


@pytest.mark.parametrize("place", ["first", "last"])
def test_debug_shows_the_traceback(run, tmp_path, place):
    command = ["info", tmp_path / "gone.keras"]
    if place == "first":
        status, _, errors = run("--debug", *command)
    else:
        status, _, errors = run(*command, "--debug")
    assert status == ExitCode.INPUT
    assert "Traceback" in errors


def test_an_unexpected_error_is_one_line(run, monkeypatch):
    def fail():
        raise RuntimeError("out of luck")

    monkeypatch.setattr(doctor, "examine", fail)
    status, _, errors = run("doctor")
    assert status == ExitCode.FAILED
    assert "RuntimeError: out of luck" in errors
    assert "--debug" in errors and "Traceback" not in errors


def test_unknown_command_is_wrong_usage(run):
    status, _, errors = run("operate")
    assert status == ExitCode.USAGE
    assert "operate" in errors


def test_doctor_finds_this_machine_fit(run):
    status, output, errors = run("doctor")
    assert (status, errors) == (ExitCode.OK, "")
    for text in ("Python", "cores", "tensorflow", keras.__version__):
        assert text in output
    assert "All that the demo needs is here" in output


def test_doctor_as_json(run, monkeypatch, tmp_path):
    for name in ("mnist/3.0.1", "glue/sst2/2.0.0", "half/1.0.0"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("mnist/3.0.1", "glue/sst2/2.0.0"):
        (tmp_path / name / "dataset_info.json").write_text("{}")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    status, output, _ = run("doctor", "--json")
    facts = json.loads(output)
    assert status == ExitCode.OK
    assert facts["problems"] == []
    assert facts["backend"] == keras.backend.backend()
    assert facts["cores"] >= 1
    assert facts["data_sets"] == ["glue/sst2 2.0.0", "mnist 3.0.1"]
    versions = {x["name"]: x["version"] for x in facts["packages"]}
    assert versions["keras"] == keras.__version__


@pytest.mark.parametrize(
    "missing, how",
    [
        ("scikit-learn", 'pip install "keras-earlyexit[data]"'),
        ("scipy", "pip install keras-earlyexit"),
    ],
)
def test_doctor_says_what_to_install(run, monkeypatch, missing, how):
    version = doctor.version_of
    monkeypatch.setattr(
        doctor,
        "version_of",
        lambda name: None if name == missing else version(name),
    )
    status, _, errors = run("doctor")
    assert status == ExitCode.PROBLEM
    assert f"{missing} is missing: {how}" in errors


def test_doctor_reports_a_version_that_does_not_fit(run, monkeypatch):
    version = doctor.version_of
    monkeypatch.setattr(
        doctor,
        "version_of",
        lambda name: "3.12.0" if name == "keras" else version(name),
    )
    status, _, errors = run("doctor")
    assert status == ExitCode.PROBLEM
    assert "keras 3.12.0 does not fit" in errors
    assert "3.15" in errors


def test_without_typer_it_says_how_to_get_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    status, output, errors = run("doctor")
    assert (status, output) == (ExitCode.MISSING, "")
    assert 'pip install "keras-earlyexit[cli]"' in errors


def run_module(*arguments, code=None, **environment):
    return subprocess.run(
        [sys.executable, *(("-c", code) if code else ("-m", "keras_earlyexit"))]
        + list(arguments),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_python_m_runs_the_command():
    done = run_module("--version")
    assert done.returncode == ExitCode.OK, done.stderr
    assert done.stdout.startswith("keras-earlyexit ")


def test_the_module_can_be_imported_without_typer():
    done = run_module(
        code="import sys; sys.modules['typer'] = None\n"
        "from keras_earlyexit import cli\n"
        "sys.exit(cli.main(['doctor']))"
    )
    assert done.returncode == ExitCode.MISSING, done.stderr
    assert "pip install" in done.stderr


def test_help_loads_neither_keras_nor_numpy():
    done = run_module(
        code="import sys; from keras_earlyexit import cli\n"
        "cli.main(['--help'])\n"
        "sys.exit('keras' in sys.modules or 'numpy' in sys.modules)"
    )
    assert done.returncode == 0, done.stderr


def test_a_missing_backend_is_said_to_be_missing(plain):
    done = run_module(
        "info",
        str(plain),
        code="import sys; sys.modules['jax'] = None\n"
        "from keras_earlyexit import cli\n"
        "sys.exit(cli.main(sys.argv[1:]))",
        KERAS_BACKEND="jax",
    )
    assert done.returncode == ExitCode.MISSING, done.stderr
    assert "Keras cannot start" in done.stderr
    assert "Traceback" not in done.stderr
