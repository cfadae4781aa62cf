"""The command `edge-worker`: its output, its errors and exit statuses."""

import io
import json
import re

import numpy as np
import pytest

from edge_worker import cli
from edge_worker.cli.shared import ExitCode


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs the command in this process: (exit status, output, errors)."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        status = cli.main([str(argument) for argument in arguments])
        written = capsys.readouterr()
        return status, written.out, written.err

    return call


@pytest.fixture
def to_cloud(exported, cloud):
    return (
        "--bundle", exported.edge, "--cloud", cloud.address, "--insecure"
    )  # fmt: skip


def test_help_names_every_command_and_exit_status(run):
    status, output, _ = run("--help")
    assert status == ExitCode.OK
    for command in ("infer", "serve", "doctor"):
        assert command in output
    for code in ExitCode:
        assert re.search(rf"\b{int(code)}\b", output)


@pytest.mark.parametrize("command", ["infer", "serve", "doctor"])
def test_every_command_has_the_flags_of_the_cloud_worker(run, command):
    status, output, _ = run(command, "--help")
    assert status == ExitCode.OK
    for flag in (
        "--ca", "--cert", "--key", "--token-file", "--insecure", "--deadline",
        "--codec",
    ):  # fmt: skip
        assert flag in output


def test_version(run):
    status, output, _ = run("--version")
    assert status == ExitCode.OK
    assert re.fullmatch(r"edge-worker \d+\.\d+\.\d+\S*\n", output)


def test_infer_a_file(run, to_cloud, rows, wanted, tmp_path):
    np.save(tmp_path / "x.npy", rows)
    output = tmp_path / "answers.jsonl"
    status, table, errors = run(
        "infer", *to_cloud, "--input", tmp_path / "x.npy",
        "--output", output, "--batch-size", 16,
    )  # fmt: skip
    assert (status, errors) == (ExitCode.OK, "")
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["id"] for line in lines] == list(range(len(rows)))
    assert [line["exit"] for line in lines] == wanted.exit_index.tolist()
    np.testing.assert_allclose(
        [line["prediction"] for line in lines], wanted.predictions, atol=1e-4
    )
    assert lines[0]["score"] is None or lines[0]["exit"] < 2
    for text in ("200 samples", "answered by cloud", "left at final", "p99"):
        assert text in table
    assert [x.name for x in tmp_path.iterdir() if "partial" in x.name] == []


def test_infer_a_stream(run, to_cloud, rows, wanted, monkeypatch):
    lines = "".join(f"{json.dumps(row.tolist())}\n" for row in rows[:5])
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    status, output, errors = run(
        "infer", *to_cloud, "--input", "-", "--output", "-", "--json"
    )
    assert status == ExitCode.OK
    exits = [json.loads(line)["exit"] for line in output.splitlines()]
    assert exits == wanted.exit_index[:5].tolist()
    facts = json.loads(errors)
    assert facts["samples"] == 5
    assert facts["answered_by"]["degraded"] == 0


def test_infer_without_a_cloud(run, exported, rows, tmp_path):
    np.save(tmp_path / "x.npy", rows)
    status, output, _ = run(
        "infer", "--bundle", exported.edge, "--cloud", "127.0.0.1:1",
        "--insecure", "--input", tmp_path / "x.npy",
        "--output", tmp_path / "answers.jsonl", "--json",
    )  # fmt: skip
    facts = json.loads(output)
    assert status == ExitCode.OK
    assert facts["answered_by"]["degraded"] == 100
    assert set(facts["errors"]) == {"CircuitOpen"}


def test_infer_leaves_nothing_behind_after_an_error(run, to_cloud, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 5)))
    output = tmp_path / "answers.jsonl"
    status, _, errors = run(
        "infer", *to_cloud, "--input", tmp_path / "x.npy", "--output", output
    )
    assert status == ExitCode.USAGE
    assert "'row'" in errors and "Traceback" not in errors
    assert [x.name for x in tmp_path.iterdir()] == ["x.npy"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--bundle", "nowhere"], ExitCode.INPUT, "Expected a bundle"),
        (["--codec", "gzip"], ExitCode.USAGE, "codec"),
        (["--deadline", "-1"], ExitCode.USAGE, "deadline=-1"),
        (["--cloud", "192.0.2.1:1"], ExitCode.USAGE, "loopback"),
        (["--cloud", "nonsense"], ExitCode.USAGE, "host:port"),
        (["--offload", "input"], ExitCode.USAGE, "allow_raw_input"),
        (["--token-file", "nowhere"], ExitCode.USAGE, "nowhere"),
        (["--input", "nowhere"], ExitCode.INPUT, "not there"),
        (["--unknown"], ExitCode.USAGE, "unknown"),
    ],
)
def test_errors(run, to_cloud, tmp_path, arguments, status, message):
    np.save(tmp_path / "x.npy", np.zeros((3, 6)))
    found, _, errors = run(
        "infer", *to_cloud, "--input", tmp_path / "x.npy",
        "--output", tmp_path / "answers.jsonl", *arguments,
    )  # fmt: skip
    assert found == status
    assert message in errors and "Traceback" not in errors


def test_another_model_is_refused(run, start_cloud, exported, tmp_path):
    import bundling

    import keras_earlyexit as ee

    ee.export(bundling.make_model(), tmp_path / "other", cut="exit_0")
    with start_cloud(tmp_path / "other" / "segment_1", "--insecure") as cloud:
        arguments = (
            "--bundle", exported.edge, "--cloud", cloud.address, "--insecure"
        )  # fmt: skip
        np.save(tmp_path / "x.npy", np.zeros((3, 6)))
        status, _, errors = run(
            "infer", *arguments, "--input", tmp_path / "x.npy", "--output", "-"
        )
        assert status == ExitCode.REFUSED
        assert "weights" in errors
        status, output, _ = run("doctor", *arguments, "--json")
        assert status == ExitCode.PROBLEM
        checks = {x["name"]: x for x in json.loads(output)["checks"]}
        assert "weights" in checks["same model"]["found"]
        assert "Export the model once" in checks["same model"]["fix"]


def test_doctor_of_a_sound_link(run, to_cloud):
    status, output, errors = run("doctor", *to_cloud)
    assert (status, errors) == (ExitCode.OK, "")
    for text in ("bundle", "cloud worker", "clock", "one sample", "Mbit/s"):
        assert text in output
    assert "PROBLEM" not in output


def test_doctor_says_what_is_wrong(run, exported, tmp_path):
    from keras_earlyexit.cli._pki import Authority

    authority = Authority.make()
    for name, pem in (
        ("ca", authority.pem()),
        ("edge", authority.sign_edge("edge-1", -1)),
    ):
        (tmp_path / f"{name}.pem").write_bytes(pem[0])
        (tmp_path / f"{name}.key").write_bytes(pem[1])
    status, output, _ = run(
        "doctor", "--bundle", exported.edge, "--cloud", "127.0.0.1:1",
        "--ca", tmp_path / "ca.pem", "--cert", tmp_path / "edge.pem",
        "--key", tmp_path / "edge.key", "--json",
    )  # fmt: skip
    assert status == ExitCode.PROBLEM
    checks = {x["name"]: x for x in json.loads(output)["checks"]}
    assert checks["bundle"]["is_fine"]
    assert not checks["certificate (cert)"]["is_fine"]
    assert "edge-1" in checks["certificate (cert)"]["found"]
    assert not checks["cloud worker"]["is_fine"]
    assert "Start the cloud worker" in checks["cloud worker"]["fix"]


def test_doctor_of_a_bundle_that_cannot_be_used(run, exported):
    status, output, _ = run(
        "doctor", "--bundle", exported.whole, "--cloud", "127.0.0.1:1",
        "--insecure", "--json",
    )  # fmt: skip
    assert status == ExitCode.PROBLEM
    (check,) = json.loads(output)["checks"]
    assert "`cut`" in check["fix"]
