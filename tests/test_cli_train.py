"""`keras-earlyexit train`: what it makes, goes on with, and refuses."""

import json

import cli_parts
import keras
import numpy as np
import pytest

import keras_earlyexit as ee
from keras_earlyexit import cli
from keras_earlyexit.cli import ExitCode

GIVEN = (
    *("--model", "cli_parts:network", "--data", "cli_parts:data"),
    *("--exits", "hidden_0,hidden_1", "--policy", "max_probability"),
    *("--objective", "branchynet", "--epochs", 2, "--batch-size", 32),
    *("--validation-split", 0.25),
)


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs the command in a folder: (exit status, output, errors)."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        status = cli.main(["train", *map(str, arguments)])
        written = capsys.readouterr()
        return status, written.out, written.err

    return call


def test_train(run, tmp_path):
    status, output, errors = run(
        *GIVEN,
        *("-o", "m.keras", "--learning-rate", 0.01, "--json"),
        *("--tensorboard", "logs"),
    )
    assert status == ExitCode.OK, errors
    facts = json.loads(output)
    assert (facts["samples"], facts["held_out"], facts["steps"]) == (90, 30, 3)
    assert [x["layer"] for x in facts["exits"]] == [
        "hidden_0",
        "hidden_1",
        None,
    ]
    assert sum(x["share"] for x in facts["exits"]) == pytest.approx(1)
    assert facts["metric"] == "accuracy" and facts["epochs_done"] == 0
    # How it went, a line for each epoch, is beside what is for programs.
    lines = [x for x in errors.splitlines() if x.startswith("epoch ")]
    assert len(lines) == 2 and "routed" in lines[1]
    model = keras.models.load_model(tmp_path / "m.keras")
    assert isinstance(model, ee.EarlyExitModel)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
    assert int(model.optimizer.iterations) == 6
    assert sorted(x.name for x in (tmp_path / "logs").iterdir()) == [
        "samples",
        "train",
        "validation",
    ]
    assert not (tmp_path / "m.keras.unfinished").exists()
    # Kept, so that it is not taken for calibration data.
    assert model.training_fingerprints is not None


def test_the_same_seed_gives_the_same_model(run, tmp_path):
    for name in ("a", "b"):
        status, _, errors = run(*GIVEN, "-o", f"{name}.keras", "--debug")
        assert status == ExitCode.OK, errors
    a, b = (
        keras.models.load_model(tmp_path / f"{name}.keras").get_weights()
        for name in ("a", "b")
    )
    assert all(map(np.array_equal, a, b))


def test_dry_run_trains_nothing(run, tmp_path):
    status, output, _ = run(
        *("resnet_20", "--data", "digits", "--epochs", 9, "--dry-run")
    )
    assert status == ExitCode.OK
    for text in (
        *("Would train", "resnet_cifar_20", "900, and 100", "9 of 15 steps"),
        *("eenet_v0 for 3 epochs, then eenet_v2", "exit_1", "block4_out"),
    ):
        assert text in output
    assert list(tmp_path.iterdir()) == []


def stop_after(monkeypatch, epochs):
    """As with Ctrl-C, in the epoch that follows."""
    from keras_earlyexit.callbacks import LiveTable

    begin = LiveTable.on_epoch_begin

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == epochs:
            raise KeyboardInterrupt
        begin(self, epoch, logs)

    monkeypatch.setattr(LiveTable, "on_epoch_begin", on_epoch_begin)


def test_stopped_it_goes_on(run, tmp_path, monkeypatch):
    command = (*GIVEN, "--epochs", 3, "-o", "m.keras")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        status, _, errors = run(*command)
    assert status == ExitCode.INTERRUPTED
    assert "stopped after 2 of 3 epochs" in errors
    assert not (tmp_path / "m.keras").exists()
    status, output, _ = run(*command, "--dry-run")
    assert status == ExitCode.OK and "2 epochs" in output
    # Not with other options, which would be another training.
    status, _, errors = run(*command, "--batch-size", 16)
    assert status == ExitCode.INPUT
    assert "--batch-size 32" in errors and "--fresh" in errors
    status, output, errors = run(*command, "--json")
    assert status == ExitCode.OK, errors
    assert json.loads(output)["epochs_done"] == 2
    assert errors.count("epoch ") == 1 and "epoch 3/3" in errors
    model = keras.models.load_model(tmp_path / "m.keras")
    # The optimizer went on too.
    assert int(model.optimizer.iterations) == 9


def test_fresh_starts_anew(run, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        run(*GIVEN, "-o", "m.keras")
    status, output, _ = run(*GIVEN, "--seed", 5, "--fresh", "--json")
    assert status == ExitCode.OK and json.loads(output)["epochs_done"] == 0


def test_a_model_that_is_there_is_trained_further(run, tmp_path):
    plain = cli_parts.network((6,), 3)
    plain.save(tmp_path / "plain.keras")
    data = ("--data", "cli_parts:data", "--epochs", 1)
    assert run("plain.keras", *data, "--exits", 1)[0] == ExitCode.OK
    status, output, _ = run(
        "model.keras", *data, "--objective", "sdn", "--dry-run"
    )
    assert status == ExitCode.OK and "sdn" in output
    status, _, errors = run("model.keras", *data, "--exits", 1)
    assert status == ExitCode.USAGE
    assert "Leave out --exits" in errors


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("--model", "resnet"), ExitCode.INPUT, "resnet20"),
        (("--model", "none.keras"), ExitCode.INPUT, "There is no file"),
        (("--model", "cli_parts:none"), ExitCode.INPUT, "no attribute"),
        (("--model", "cli_parts:needs_more"), ExitCode.INPUT, "needs depth"),
        (("--model", "cli_parts:no_model"), ExitCode.INPUT, "a Keras model"),
        (("--data", "no_such_data"), ExitCode.INPUT, "Mind the spelling"),
        (("--data", "none.npz"), ExitCode.INPUT, "an .npz file"),
        (("--exits", "hidden_7"), ExitCode.INPUT, "hidden_7"),
        (("--exits", 40), ExitCode.INPUT, "40"),
        (("--objective", "branchynett"), ExitCode.USAGE, "Did you mean"),
        (("--policy", "max_prob"), ExitCode.INPUT, "Did you mean"),
        (("--optimizer", "adm"), ExitCode.USAGE, "Did you mean 'adam'?"),
        (("--learning-rate", -1), ExitCode.USAGE, "above 0"),
        (("--input-shape", "8x8"), ExitCode.USAGE, "8x8"),
        (("--epochs", 0), ExitCode.USAGE, "--epochs"),
        (("--first-epochs", 50), ExitCode.USAGE, "--first-epochs of at most"),
        (("-o", "model.h5"), ExitCode.USAGE, "ends in .keras"),
        (("-o", "none/m.keras"), ExitCode.INPUT, "there is no folder"),
    ],
)
def test_what_the_user_can_mend(run, options, status, message, tmp_path):
    found, _, errors = run(*GIVEN, "--dry-run", *options)
    assert (found, message in errors) == (status, True), errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_missing(run, monkeypatch):
    monkeypatch.setattr("keras_earlyexit.cli.shared.version_of", lambda _: None)
    status, _, errors = run(*GIVEN, "--tensorboard", "logs")
    assert status == ExitCode.MISSING
    assert 'pip install "keras-earlyexit[tensorboard]"' in errors


def test_samples_that_do_not_fit(run, tmp_path):
    cli_parts.network((4,), 3).save(tmp_path / "plain.keras")
    status, _, errors = run("plain.keras", "--data", "cli_parts:data")
    assert status == ExitCode.INPUT
    assert "shape (4,)" in errors and "shape (6,)" in errors
    x, y = cli_parts.data()
    np.savez(tmp_path / "nan.npz", x=np.full_like(x, np.nan), y=y)
    cli_parts.network((6,), 3).save(tmp_path / "plain.keras")
    status, _, errors = run("plain.keras", "--data", "nan.npz", "--dry-run")
    assert status == ExitCode.INPUT and "with NaN in 120 of 120" in errors
