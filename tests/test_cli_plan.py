"""`keras-earlyexit plan`: its tables, its JSON, its picture, its errors."""

import json

import keras
import pytest

import keras_earlyexit as ee
from keras_earlyexit import cli
from keras_earlyexit.cli import ExitCode, plan_inputs
from keras_earlyexit.cli.shared import CommandError


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs the command in this process: (exit status, output, errors)."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        status = cli.main(["plan", *map(str, arguments)])
        written = capsys.readouterr()
        return status, written.out, written.err

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with an exit, and two profiles of it."""
    folder = tmp_path_factory.mktemp("plan")
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, padding="same", name="first")(inputs)
    x = keras.layers.Conv2D(4, 3, padding="same", name="second")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(3, activation="softmax")(x)
    plain = keras.Model(inputs, outputs, name="small")
    plain.save(folder / "plain.keras")
    model = ee.add_exits(plain, ["first"])
    model.save(folder / "model.keras")
    profile = ee.cost.profile(model, (1, 4), repeats=2)
    profile.save(folder / "edge.json")
    profile.save(folder / "cloud.json")
    return folder


@pytest.fixture
def given(folder):
    return [
        folder / "model.keras",
        *("--edge", folder / "edge.json", "--cloud", folder / "cloud.json"),
        *("--link", "10Mbit/s:20ms"),
    ]


def test_table(run, given):
    status, output, errors = run(*given, "--rates", "0.75,0.25")
    assert (status, errors) == (ExitCode.OK, "")
    for text in (
        *("Where to cut 'small' to answer with it", "10 Mbit/s", "20 ms"),
        *("* exit_0", "! edge alone", "cloud alone", "the best cut"),
        "Do not cut, take the edge alone",
    ):
        assert text in output
    assert "Measured on this machine" not in output


def test_training_as_json(run, given):
    status, output, _ = run(
        *given,
        *("--mode", "train", "--batch-size", 4, "--samples", 100),
        *("--bytes-per-element", 1, "--forward", 0.5, "--one-by-one"),
        "--json",
    )
    facts = json.loads(output)
    assert status == ExitCode.OK
    assert facts["best"] == "exit_0" and facts["measured_here"] == []
    found = ee.Plan.from_json(json.dumps(facts["plan"]))
    assert (found.mode, found.batch_size) == ("train", 4)
    assert found.best.share == 0.5
    assert found.best.bytes_up == pytest.approx(2 * (8 * 8 * 4 + 4))
    assert found.best.epoch_seconds == pytest.approx(25 * found.best.seconds)
    assert [entry["way"] for entry in facts["why"]] == [
        row.way for row in found.rows
    ]
    assert found.advice == facts["advice"]


def test_without_profiles_this_machine_is_measured(run, folder):
    status, output, errors = run(
        *(folder / "model.keras", "--link", "1Gbit/s", "--batch-size", 2),
        *("--cloud", folder / "cloud.json"),
    )
    assert status == ExitCode.OK
    assert "measuring this machine for: edge." in errors
    assert "Measured on this machine: edge;" in output


def test_a_plain_model_and_a_picture(run, folder, tmp_path):
    path = tmp_path / "plan.svg"
    status, output, _ = run(
        *(folder / "plain.keras", "--link", "1Mbit/s:1ms"),
        *("--memory-limit", "1B", "--plot", path),
    )
    assert status == ExitCode.OK
    assert "second" in output and "1 B are allowed" in output
    assert path.read_text().lstrip().startswith("<?xml")


@pytest.mark.parametrize(
    ("option", "status", "message"),
    [
        (("--link", "fast"), ExitCode.USAGE, "such as 10Mbit/s:20ms"),
        (("--link", "0Mbit/s"), ExitCode.USAGE, "such as 10Mbit/s:20ms"),
        (("--memory-limit", "much"), ExitCode.USAGE, "such as 64MB"),
        (("--rates", "a,b"), ExitCode.USAGE, "between commas"),
        (("--rates", "0.5,0.4"), ExitCode.INPUT, "sum to 1"),
        (("--mode", "dream"), ExitCode.INPUT, "'infer' or 'train'"),
        (("--forward", "some"), ExitCode.INPUT, "'non_exited' or a share"),
        (("--objective", "joy"), ExitCode.INPUT, "'seconds' or 'bytes'"),
        (("--edge", "none.json"), ExitCode.INPUT, "no profile of a device"),
        (("--plot", "plan.xyz"), ExitCode.USAGE, ".png, .svg, .pdf"),
        (("--plot", "none/plan.png"), ExitCode.INPUT, "there is no folder"),
    ],
)
def test_what_the_user_can_mend(run, given, option, status, message):
    if option[0] == "--forward":
        given = [*given, "--mode", "train"]
    found, output, errors = run(*given, *option)
    assert (found, output) == (status, "")
    assert message in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    "option",
    [("--rates", "0.5,0.4"), ("--forward", "2"), ("--memory-limit", "0B")],
)
def test_mistakes_are_told_before_anything_is_measured(run, folder, option):
    status, output, errors = run(
        *(folder / "model.keras", "--link", "1Gbit/s", "--mode", "train"),
        *option,
    )
    assert (status, output) == (ExitCode.INPUT, "")
    assert "Expected" in errors and "measuring" not in errors


@pytest.mark.parametrize("name", ["model.keras", "plain.keras"])
def test_a_dry_run_measures_nothing(run, folder, name):
    given = (folder / name, "--link", "1Gbit/s", "--batch-size", 8)
    status, output, errors = run(*given, "--dry-run", "--json")
    assert (status, errors) == (ExitCode.OK, "")
    facts = json.loads(output)
    assert facts["measured_here"] == ["edge", "cloud"]
    assert facts["batch_sizes"] == [1, 8]
    edge = ("--edge", folder / "edge.json", "--plot", folder / "not.png")
    status, output, errors = run(*given, *edge, "--dry-run")
    assert (status, errors) == (ExitCode.OK, "")
    assert "Would plan" in output and "1, 8" in output
    assert not (folder / "not.png").exists()


def test_no_profile_in_a_file(run, given, tmp_path):
    path = tmp_path / "edge.json"
    path.write_text("{}")
    status, _, errors = run(*given, "--edge", path)
    assert status == ExitCode.INPUT
    assert "no profile of a device" in errors
    assert "`keras-earlyexit bench" in errors


@pytest.mark.parametrize(
    ("text", "bits_per_second", "round_trip"),
    [
        ("10Mbit/s:20ms", 10e6, 0.02),
        ("2.5 Gbit/s:500us", 2.5e9, 5e-4),
        ("64kbit/s:1.5 s", 64e3, 1.5),
        ("9600bit/s", 9600, 0),
    ],
)
def test_links(text, bits_per_second, round_trip):
    link = plan_inputs.parse_link(text)
    assert link.bits_per_second == pytest.approx(bits_per_second)
    assert link.round_trip_seconds == pytest.approx(round_trip)


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MB", 64e6), ("64MiB", 2**26), ("1.5 kB", 1500), ("7B", 7)],
)
def test_sizes(text, size):
    assert plan_inputs.parse_size(text) == pytest.approx(size)


@pytest.mark.parametrize("text", ["64", "MB", "-1MB", "1.2.3MB", "64Mb"])
def test_sizes_that_are_none(text):
    with pytest.raises(CommandError, match="such as 64MB"):
        plan_inputs.parse_size(text)
