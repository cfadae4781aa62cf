"""The command line of `cloud-worker`, without serving anything."""

import subprocess
import sys

import pytest

from cloud_worker import cli, logs
from cloud_worker.config import Settings
from keras_earlyexit.cli.shared import ExitCode


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs the command: exit status, standard output and error."""
    monkeypatch.setenv("COLUMNS", "200")
    # The command sets up its process, which is ours here.
    monkeypatch.setattr(logs, "configure", lambda level, stream: None)
    seconds = sys.getswitchinterval()

    def command(*arguments):
        code = cli.main([*map(str, arguments)])
        found = capsys.readouterr()
        return code, found.out, found.err

    yield command
    sys.setswitchinterval(seconds)


def test_stages_need_not_wait_long_for_python(run):
    run("serve", "--bundle", "b")
    assert sys.getswitchinterval() < 1e-3


def test_help_names_every_setting(run):
    code, out, _ = run("serve", "--help")
    assert code == ExitCode.OK
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in out


def test_version(run):
    code, out, _ = run("--version")
    assert code == ExitCode.OK and out.startswith("cloud-worker ")


def test_settings_are_shown_and_read_again(run, tmp_path):
    flags = ("--bundle", "a", "--bundle", "b", "--max-batch", 8, "--insecure")
    code, out, _ = run("serve", *flags, "--print-config")
    assert code == ExitCode.OK
    assert 'bundle = ["a", "b"]' in out and "max_batch = 8" in out
    file = tmp_path / "worker.toml"
    file.write_text(out)
    flags = ("--config", file, "--no-insecure", "--print-config")
    code, again, _ = run("serve", *flags)
    assert code == ExitCode.OK
    changed = "insecure = true", "insecure = false"
    assert again == out.replace(*changed, 1)


@pytest.mark.parametrize(
    ("flags", "code", "expected"),
    [
        (("--nonsense",), ExitCode.USAGE, "No such option"),
        ((), ExitCode.USAGE, "Expected the setting bundle"),
        (("--bundle", "b", "--max-batch", 0), ExitCode.USAGE, "max_batch=0"),
        (("--bundle", "b", "--config", "no"), ExitCode.USAGE, "--config"),
        (("--bundle", "b"), ExitCode.INPUT, "Expected a certificate"),
        (
            ("--bundle", "b", "--insecure", "--listen", "0.0.0.0:0"),
            ExitCode.INPUT,
            "loopback",
        ),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(flags, code, expected, run):
    found, _, err = run("serve", *flags)
    assert found == code and expected in err and "Traceback" not in err


def test_help_needs_neither_grpc_nor_tensorflow():
    script = (
        "import sys; from cloud_worker import cli; "
        "cli.main(['serve', '--help']); "
        "heavy = {'grpc', 'keras', 'tensorflow', 'ai_edge_litert'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.stdout.splitlines()[-1] == "[]", found
