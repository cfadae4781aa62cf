"""The commands of docs/command-line.md, run as they stand there."""

import pathlib
import re
import shlex

import pytest
from rich.text import Text

import cloud_worker.cli
import edge_worker.cli
from keras_earlyexit import cli
from keras_earlyexit.cli import ExitCode, shared

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "command-line.md"
TEXT = PAGE.read_text()
#: What makes a command quick, and needs no other machine.
QUICKER = {
    "train": ("--epochs", "1"),
    "report": ("--dry-run",),
    "bench": ("--repeats", "1"),
}
#: Segments to merge come from two machines, networks to tune from the reader.
ONLY_HELP = ("merge", "tune", "widen")


def commands():
    """The lines that the page shows, as lists of words."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL):
        joined = block.replace("\\\n", " ")
        found += [
            shlex.split(line.removeprefix("$ "))
            for line in joined.splitlines()
            if line.startswith("$ keras-earlyexit ")
        ]
    return found


def options_of(command):
    import typer

    program = cli._app()
    assert isinstance(program, typer.core.TyperGroup)
    return {
        option
        for param in program.commands[command].params
        for option in param.opts
    }


def test_every_command_is_on_the_page():
    names = set(cli._app().commands)
    table = TEXT.split("Every command has")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) >= names
    shown = {words[1] for words in commands()}
    assert names - shown <= {"doctor", "tune", "demo"}


def test_every_exit_status_is_on_the_page():
    table = TEXT.split("## Exit statuses")[1]
    found = set(map(int, re.findall(r"^\| (\d+) \|", table, re.MULTILINE)))
    assert found >= set(map(int, ExitCode))
    assert all(f"{int(code)} " in shared.EXIT_CODES for code in ExitCode)


def test_shared_options_have_one_form():
    """One letter, one name and one help text for the same thing."""
    forms = {}
    for command in cli._app().commands.values():
        for param in command.params:
            if param.param_type_name == "option":
                forms.setdefault(param.name, set()).add(tuple(param.opts))
    several = {name: opts for name, opts in forms.items() if len(opts) > 1}
    # It was called --out once.
    several.pop("output", None)
    assert several == {}


@pytest.mark.parametrize("program", [cli, edge_worker.cli, cloud_worker.cli])
def test_nothing_is_lost_from_the_help(program):
    """What stands in brackets is markup for who prints it."""
    for command in program._app().commands.values():
        for param in command.params:
            text = getattr(param, "help", None) or ""
            assert Text.from_markup(text).plain == text, command.name


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (toml,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "earlyexit.toml").write_text(toml)
    lines = commands()
    assert len(lines) >= 10
    for _, command, *words in lines:
        if command in ONLY_HELP:
            words = ["--help"]
        else:
            words += QUICKER.get(command, ())
        status = cli.main([command, *words])
        written = capsys.readouterr()
        assert status == ExitCode.OK, (command, words, written.err)
        assert written.out, command
    for name in (
        *("model.keras", "laptop.json"),
        *("bundle/manifest.json", "certs/ca.pem"),
    ):
        assert (tmp_path / name).exists(), name


@pytest.mark.parametrize("option", re.findall(r"\| `(--[a-z-]+)", TEXT))
def test_options_in_the_table_are_there(option):
    everywhere = set().union(*map(options_of, cli._app().commands))
    assert option in everywhere | {"--debug"}
