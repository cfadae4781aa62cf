"""Training with the commands: two processes, also when they are killed."""

import importlib
import json
import random
import time

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator
from training_data import BATCHES, arrays
from training_server import serving

import edge_worker.cli
import keras_earlyexit as ee
from cloud_worker.training.remote_ledger import RemoteLedger
from cloud_worker.training.trainer import Trainer
from keras_earlyexit import snapshots
from keras_earlyexit.cli import main


@pytest.fixture
def folder(tmp_path):
    keras.utils.set_random_seed(0)
    row = keras.Input((8,), name="row")
    x = row
    for i in range(2):
        x = keras.layers.Dense(8, activation="relu", name=f"dense_{i}")(x)
        x = keras.layers.Dropout(0.2, seed=i, name=f"dropout_{i}")(x)
    outputs = keras.layers.Dense(3, activation="softmax", name="head")(x)
    model = ee.add_exits(keras.Model(row, outputs, name="small"), ["dropout_0"])
    model.save(tmp_path / "model.keras")
    x, y = arrays()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    return tmp_path


def bytes_of(states):
    return [[array.tobytes() for array in arrays] for arrays in states]


def test_train_and_merge(folder, capsys):
    """The edge's command, against a cloud worker of this process."""
    cloud = ee.split(keras.models.load_model(folder / "model.keras"), "exit_0")
    cloud[1].compile(keras.optimizers.Adam(0.01))
    parts = [str(folder / f"{side}.keras") for side in ("edge", "cloud")]
    with serving(
        lambda: Trainer.for_segment(cloud[1], folder / "cloud", commit_every=5)
    ) as (target, trainer):
        command = [
            *("train", "--model", folder / "model.keras", "--cloud", target),
            *("--data", folder / "data.npz", "--epochs", 4, "--json"),
            *("--state", folder / "edge", "--output", parts[0], "--insecure"),
            *("--codec", "uint8", "--learning-rate", 0.01),
            *("--tensorboard", folder / "logs"),
        ]
        assert edge_worker.cli.main([str(part) for part in command]) == 0
        assert trainer.steps == 28
    facts = json.loads(capsys.readouterr().out)
    assert facts["batches"] == 28 and facts["bytes_up"] > 28 * 32 * 8 / 4
    assert facts["seconds"] > 0
    reader = event_accumulator.EventAccumulator(str(folder / "logs/train"))
    reader.Reload()
    tags = {
        *("loss/total", "accuracy/exit_0", "threshold/exit_0"),
        *("loss/cloud", "cloud_accuracy", "bytes_up", "forwarded"),
    }
    assert tags <= set(reader.Tags()["tensors"])
    assert [event.step for event in reader.Tensors("bytes_up")] == [0, 1, 2, 3]
    snapshots.save_model(cloud[1], parts[1])
    assert main(["merge", *parts, "-o", str(folder / "merged.keras")]) == 0
    merged = keras.models.load_model(folder / "merged.keras")
    data = np.load(folder / "data.npz")
    found = merged(data["x"])
    for name in ("exit_0", "final"):
        right = np.asarray(found[name]).argmax(axis=-1) == data["y"]
        assert right.mean() > 0.6, name


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_killed_at_random_it_ends_as_if_nothing_had_happened(run):
    """500 steps with 20 kills: all bytes of both sides are those of a calm run.

    Optimizer and random state are among them.
    """
    epochs, seed = 500 // BATCHES, 0
    print(f"--seed {seed}")
    edge = (
        *("--data", "training_data:batches", "--epochs", epochs),
        *("--forward", "all", "--codec", "uint8+zstd"),
        *("--checkpoint-every", 7),
    )
    cloud = ("--commit-every", 7)
    calm = run("calm")
    calm.start("cloud", "--commit-every", 20)
    calm.start("edge", *edge)
    expected = bytes_of(calm.finish())
    rng, both = random.Random(seed), run("killed")
    both.allow(0)

    def start():
        both.start("cloud", *cloud)
        both.start("edge", *edge)

    def kill():
        sides = rng.sample(["edge", "cloud"], 2)
        both.kill(sides[0])
        time.sleep(rng.uniform(0, 0.5))
        both.kill(sides[1])
        start()

    start()
    both.disturb([kill] * 10, "edge", epochs * BATCHES, rng)
    assert bytes_of(both.finish()) == expected
    assert both.kills == 20


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_another_machine_goes_on_from_a_store(folder, run, tmp_path):
    """The state of a run whose cloud is lost with its disk is a calm run's."""
    pytest.importorskip("fsspec")
    url = f"file://{tmp_path}/store/run"
    edge = (
        *("--data", "training_data:batches", "--epochs", 120 // BATCHES),
        *("--forward", "all", "--checkpoint-every", 7),
    )
    calm = run("calm")
    calm.start("cloud", "--commit-every", 7)
    calm.start("edge", *edge)
    expected = bytes_of(calm.finish())
    both = run("moved")
    both.environment["SECONDS_A_BATCH"] = "0.03"
    both.start("cloud", "--commit-every", 7, "--state", url)
    both.start("edge", *edge)
    ends = time.monotonic() + 300
    while both.steps("edge") < 40:
        assert both.running["edge"].poll() is None, both.log("edge")
        assert time.monotonic() < ends, both.log("cloud")
        time.sleep(0.01)
    both.kill("cloud")
    both.start("cloud", "--commit-every", 7, "--state", url)
    both.wait("edge", 600)
    both.stop("cloud")
    # Nothing of it was kept on the machine that was lost.
    assert not both.path("cloud_state").exists()
    found = both.state("edge"), RemoteLedger(url).read()[0]
    assert bytes_of(found) == expected


@pytest.mark.parametrize("side", ["edge", "cloud"])
def test_command_is_there(side, capsys):
    command = importlib.import_module(f"{side}_worker.cli").main
    assert command(["train", "--help"]) == 0
    assert "--optimizer" in capsys.readouterr().out
    assert command(["train", "--no-such-option"]) == 2
