"""`keras-earlyexit tune`: what it prints, saves and refuses."""

import json

import keras
import numpy as np
import pytest
from tuning_data import build

from keras_earlyexit import cli, datasets
from keras_earlyexit.cli import ExitCode, tune_inputs, tune_search
from keras_earlyexit.cli.shared import CommandError


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs the command in this process: (exit status, output, errors)."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        given = ["tune", *map(str, arguments)]
        if "--model" not in given:
            given += ["--model", "tuning_data:build"]
        if "--data" not in given:
            given += ["--data", "tuning_data:few"]
        status = cli.main(given)
        written = capsys.readouterr()
        return status, written.out, written.err

    return call


SMALL = (
    *("--exits", 1, "--objectives", "sdn,eenet_v2", "--epochs", 2),
    *("--tuner", "random", "--batch-size", 100),
)


def test_dry_run_searches_nothing(run, tmp_path):
    status, output, errors = run(*SMALL, "--trials", 2, "--dry-run")
    assert status == ExitCode.OK, errors
    for text in ("Would search", "sdn,eenet_v2", "calibration: "):
        assert text in output
    status, output, _ = run(*SMALL, "--trials", 2, "--dry-run", "--json")
    facts = json.loads(output)
    assert status == ExitCode.OK and facts["trials"] == 2
    assert set(facts["samples"]) >= {"train", "calibration", "test"}
    assert list(tmp_path.iterdir()) == []


def test_a_search(run, tmp_path):
    options = [*SMALL, "--budget", 0.8, "--tensorboard", "logs"]
    status, output, errors = run(*options, "--trials", 2)
    assert status == ExitCode.OK, errors
    assert "2 of 2  trial 1" in errors and "best: " in errors
    assert "Trials that no other beats" in output and "Best: trial" in output
    folder = tmp_path / "tuning"
    pictures = ("front", "trials", "places", "network")
    for name in (*(f"{name}.png" for name in pictures), "best.keras"):
        assert (folder / name).stat().st_size > 1000
    assert len(list((tmp_path / "logs").iterdir())) == 2
    model = keras.models.load_model(folder / "best.keras")
    assert len(model.exit_layers) == 1
    # Nothing is left to do but to tell; one more trial is one trial.
    status, output, errors = run(*options, "--trials", 2, "--json")
    facts = json.loads(output)
    assert "going on: 2 trials have ended before" in errors
    assert len(facts["trials"]) == 2 and 0 <= facts["test"]["accuracy"] <= 1
    # The best is judged by its whole curve, the front by one threshold each.
    ids = {trial["id"] for trial in facts["trials"]}
    assert facts["best"]["id"] in ids and set(facts["front"]) <= ids
    assert facts["without_exits"] > 0
    other = [*options, "--trials", 2, "--epochs", 3]
    status, _, errors = run(*other)
    assert status == ExitCode.INPUT
    assert "with --epochs 2" in errors and "--overwrite" in errors


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("--model", "nowhere:build"), ExitCode.INPUT, "nowhere"),
        (("--model", "tuning_data:digits"), ExitCode.INPUT, "needs split"),
        (("--model", "tuning_data:few"), ExitCode.INPUT, "a Keras model"),
        (("--model", "none.keras"), ExitCode.INPUT, "no file"),
        (("--data", "nothing_of_the_kind"), ExitCode.INPUT, "data set"),
        (("--exits", "few"), ExitCode.USAGE, "such as 1-3"),
        (("--exits", "9"), ExitCode.INPUT, "at least 9 block ends"),
        (("--objectives", "snd"), ExitCode.INPUT, "Did you mean 'sdn'"),
        (("--blocks", "pol"), ExitCode.INPUT, "pool, bnpool"),
        (("--policies", "entropie"), ExitCode.INPUT, "Did you mean"),
        (("--placements", "parreto"), ExitCode.INPUT, "free, pareto"),
        (("--tuner", "guess"), ExitCode.USAGE, "bayesian, random"),
        (("--budget", "0.05"), ExitCode.INPUT, "that is the least"),
        (("--budget", "-1"), ExitCode.INPUT, "above 0"),
        (("--listen", "here"), ExitCode.USAGE, "HOST:PORT"),
        (("--join", "here"), ExitCode.USAGE, "HOST:PORT"),
        (("--data", "cli_parts:data"), ExitCode.INPUT, "samples of shape"),
        (("--output", "file"), ExitCode.INPUT, "to be a folder"),
        (("--storage", "nothing://x"), ExitCode.INPUT, "URL of a database"),
    ],
)
def test_what_the_user_can_mend(run, tmp_path, options, status, message):
    (tmp_path / "file").touch()
    found, output, errors = run(*options, "--trials", 1)
    assert (found, output) == (status, ""), errors
    assert message in errors and "Traceback" not in errors
    # What has not begun is in nobody's way.
    assert not (tmp_path / "tuning" / "search.json").exists()


def test_all_trials_fail(run):
    # A token block needs tokens, and there are none in this network.
    status, _, errors = run("--blocks", "token", *SMALL, "--trials", 1)
    assert status == ExitCode.INPUT
    assert "None of 1 trials could be judged" in errors and "token" in errors


def test_splits_share_no_samples(tmp_path):
    x = np.arange(100)[:, None]
    np.savez(tmp_path / "all.npz", x=x, y=x[:, 0])
    np.savez(
        tmp_path / "two.npz",
        **{"x_train": x[:80], "y_train": x[:80, 0]},
        **{"x_test": x[80:], "y_test": x[80:, 0]},
    )
    for name in ("all", "two"):
        parts = tune_inputs.splits_of(str(tmp_path / f"{name}.npz"), (1,))
        rows = [set(y) for _, y in parts.values()]
        assert sum(map(len, rows)) == len(set.union(*rows)) == 100
    assert set(parts["test"][1]) == set(range(80, 100))
    parts = tune_inputs.splits_of("digits", (8, 8, 1))
    sizes = {name: len(y) for name, (_, y) in parts.items()}
    assert sizes["train"] == 1000 and sizes["test"] == 400
    assert sizes["calibration"] + sizes["validation"] == 397
    x, y = datasets.load("digits", "calibration")
    assert [*parts["calibration"][1], *parts["validation"][1]] == list(y)


def test_too_few_samples(tmp_path):
    np.savez(tmp_path / "few.npz", x=np.zeros((9, 1)), y=np.zeros(9, int))
    with pytest.raises(CommandError, match="at least 40 samples.*9 samples"):
        tune_inputs.splits_of(str(tmp_path / "few.npz"), (1,))


def test_one_search_in_a_folder_at_a_time(run, tmp_path):
    (tmp_path / "tuning").mkdir()
    with tune_inputs.only_one(tmp_path / "tuning"):
        status, _, errors = run("--trials", 1)
    assert status == ExitCode.INPUT and "Another process" in errors


def search(model, data, folder):
    given = {"model": str(model), "data": data}
    return tune_search.Search(given, None, folder, 1)


def test_a_saved_network_is_where_trials_start(tmp_path):
    network = build()
    network.save(tmp_path / "net.keras")
    found = search(tmp_path / "net.keras", "digits", tmp_path)
    assert found.is_trained
    for one, other in zip(network.weights, found.network.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_networks_of_ours_are_made_for_the_data(tmp_path):
    found = search("eenet8_4", "digits", tmp_path)
    assert not found.is_trained
    assert found.network.input_shape == (None, 8, 8, 1)
    assert found.make() is not found.make()
