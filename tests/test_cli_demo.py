"""`keras-earlyexit demo`: what it refuses, before anything is started."""

import signal
import socket

import cli_parts
import numpy as np
import pytest

import keras_earlyexit as ee
from keras_earlyexit import cli
from keras_earlyexit.cli import ExitCode

pytest.importorskip("gradio", reason="gradio: make browser")

MODEL = ("--model", "m.keras", "--no-browser")


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs the command in a folder with models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    plain = cli_parts.network((8, 8, 1), 10)
    plain.save("plain.keras")
    ee.add_exits(plain, ["hidden_0"]).save("m.keras")
    rows = cli_parts.network((6,), 3)
    ee.add_exits(rows, ["hidden_0"]).save("rows.keras")
    np.savez("unlabelled.npz", x=np.zeros((4, 8, 8, 1), "float32"))
    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments):
        status = cli.main(["demo", *map(str, arguments)])
        return status, capsys.readouterr()

    yield call
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("none.keras",), ExitCode.INPUT, "none.keras"),
        (("plain.keras",), ExitCode.INPUT, "keras-earlyexit train"),
        (("rows.keras",), ExitCode.INPUT, "images of a fixed size"),
        ((*MODEL, "--data", "none"), ExitCode.INPUT, "none"),
        ((*MODEL, "--data", "cli_parts:data"), ExitCode.INPUT, "(8, 8, 1)"),
        ((*MODEL, "--data", "unlabelled.npz"), ExitCode.INPUT, "y"),
        ((*MODEL, "--split", "none"), ExitCode.INPUT, "none"),
        ((*MODEL, "--class-names", "a,b"), ExitCode.INPUT, "10"),
        ((*MODEL, "--port", "70000"), ExitCode.USAGE, "65535"),
        ((*MODEL, "--image-scale", "x"), ExitCode.USAGE, "--image-scale"),
        (("m.keras", "more"), ExitCode.USAGE, "more"),
    ],
)
def test_what_the_user_can_mend(run, arguments, status, message):
    found, written = run(*arguments)
    assert (found, message in written.err) == (status, True), written.err
    assert "Traceback" not in written.err and not written.out


def test_a_port_that_is_taken(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, written = run(*MODEL, "--port", port)
    assert status == ExitCode.INPUT
    assert f"Port {port} cannot be had" in written.err
