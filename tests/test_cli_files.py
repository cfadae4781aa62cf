"""`--config`: the options of a command from a TOML file."""

import json
import os
import subprocess
import sys

import pytest

from keras_earlyexit import cli
from keras_earlyexit.cli import ExitCode, config_files
from keras_earlyexit.cli.shared import CommandError

KNOWN = {
    "train": {"model", "epochs", "batch_size", "exits"},
    "plan": {"model", "link", "one_by_one"},
}


@pytest.fixture
def read(tmp_path):
    def call(text, command="train"):
        path = tmp_path / "options.toml"
        path.write_text(text)
        return config_files.read(path, command, KNOWN)

    return call


def test_plain_keys_are_for_all_and_tables_for_one(read):
    text = (
        'model = "m.keras"\nepochs = 3\nlink = "1Mbit/s"\n'
        "[train]\nbatch-size = 8\nepochs = 4\nexits = [0.25, 0.5]\n"
        "[plan]\none_by_one = true\n"
    )
    assert read(text) == {
        "model": "m.keras",
        "epochs": "4",
        "batch_size": "8",
        "exits": "0.25,0.5",
    }
    assert read(text, "plan") == {
        "model": "m.keras",
        "link": "1Mbit/s",
        "one_by_one": True,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "'epoch', which there is not. Did you mean 'epochs'"),
        ("modell = 3", "Did you mean 'model'"),
        ("lnk = 3", "Did you mean 'link'"),
        ("[train]\nlink = 3", r"\[train\] 'link'"),
        ("[trian]\nepochs = 3", "'trian', which there is not"),
        ("qqqq = 3", "There are: batch-size, epochs, exits, link"),
        ("epochs = ", "Expected a file in TOML"),
        ("[epochs]\na = 1", "'epochs', which there is not"),
    ],
)
def test_what_is_wrong_is_named(read, text, message):
    with pytest.raises(CommandError, match=message):
        read(text)


def test_a_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path, tmp_path / "none.toml"):
        with pytest.raises(CommandError, match="Expected a file with settings"):
            config_files.read(path, "train", KNOWN)
    path = tmp_path / "large.toml"
    path.write_bytes(b"#" * (2 << 20))
    with pytest.raises(CommandError, match="more than"):
        config_files.read(path, "train", KNOWN)


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        status = cli.main([str(argument) for argument in arguments])
        written = capsys.readouterr()
        return status, written.out, written.err

    return call


def test_what_stands_on_the_line_counts_more(run, tmp_path):
    path = tmp_path / "options.toml"
    path.write_text('model = "a.keras"\n')
    for arguments, name in (
        ((), "a.keras"),
        (("b.keras",), "b.keras"),
        (("--model", "c.keras"), "c.keras"),
    ):
        status, _, errors = run("info", *arguments, "--config", path)
        assert status == ExitCode.INPUT
        assert f"There is no file '{name}'" in errors


def test_keys_are_what_flags_are_called(run, tmp_path):
    path = tmp_path / "options.toml"
    path.write_text("json = true\n[certs]\nedge = ['a', 'b']\noutput = 'c'")
    status, output, errors = run("certs", "--config", path)
    assert status == ExitCode.OK, errors
    assert list(json.loads(output)["edges"]) == ["a", "b"]


def test_values_are_checked_as_on_the_line(run, tmp_path):
    path = tmp_path / "options.toml"
    path.write_text('[train]\nepochs = "ten"\n')
    status, _, errors = run("train", "x", "--data", "y", "--config", path)
    assert status == ExitCode.USAGE
    assert "--epochs" in errors and "valid integer" in errors


def test_a_model_is_needed_once(run):
    status, _, errors = run("info")
    assert status == ExitCode.USAGE and "Missing option '--model'" in errors
    for arguments in (("a", "b"), ("a", "--model", "b")):
        status, _, errors = run("info", *arguments)
        assert status == ExitCode.USAGE
        assert "unexpected extra argument" in errors


def complete(line):
    """What bash would be offered."""
    words = line.split(" ")
    done = subprocess.run(
        [sys.executable, "-m", "keras_earlyexit"],
        env={
            **os.environ,
            "_KERAS_EARLYEXIT_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout.split()


def test_shell_completion():
    found = complete("keras-earlyexit ")
    assert {"train", "calibrate", "export", "info"} <= set(found)
    assert complete("keras-earlyexit cal") == ["calibrate"]
    assert "--batch-size" in complete("keras-earlyexit train --bat")


def test_the_script_for_bash_is_shown():
    done = subprocess.run(
        [
            "bash",
            "-c",
            f"{sys.executable} -m keras_earlyexit --show-completion; exit $?",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "_KERAS_EARLYEXIT_COMPLETE=complete_bash" in done.stdout
    assert "complete " in done.stdout and done.returncode == 0
