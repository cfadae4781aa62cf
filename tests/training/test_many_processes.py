"""Three machines, and several edges, as processes that are killed."""

import functools
import json
import random

import keras
import numpy as np
import pytest
from training_data import BATCHES, arrays

import keras_earlyexit as ee
from keras_earlyexit.cli import main

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]


@pytest.fixture
def folder(tmp_path):
    keras.utils.set_random_seed(0)
    row = keras.Input((8,), name="row")
    x = row
    for i in range(3):
        x = keras.layers.Dense(8, activation="relu", name=f"dense_{i}")(x)
        x = keras.layers.Dropout(0.2, seed=i, name=f"dropout_{i}")(x)
    outputs = keras.layers.Dense(3, activation="softmax", name="head")(x)
    model = ee.add_exits(
        keras.Model(row, outputs, name="small"), ["dropout_0", "dropout_1"]
    )
    model.save(tmp_path / "model.keras")
    x, y = arrays()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    return tmp_path


CUTS = ("--cut", "exit_0", "--cut", "exit_1")
EDGE = ("--data", "training_data:batches", "--checkpoint-every", 7)
EPOCHS = 12
STEPS = EPOCHS * BATCHES


def start_tiers(tiers):
    above = tiers.address("cloud")
    tiers.start("cloud", *CUTS, "--commit-every", 5)
    start_middle(tiers, above)
    tiers.start("edge", *CUTS, *EDGE, "--epochs", EPOCHS, asks="cloud_middle")


def start_middle(tiers, above):
    tiers.start(
        "cloud_middle",
        *(*CUTS, "--segment", 1, "--commit-every", 7),
        *("--forward", above, "--forward-insecure"),
        *("--forward-codec", "uint8"),
    )


def finish_tiers(tiers):
    tiers.wait("edge", 900)
    tiers.stop("cloud_middle")
    tiers.stop("cloud")
    names = ("edge", "cloud_middle", "cloud")
    return [[a.tobytes() for a in tiers.state(name)] for name in names]


def test_middle_is_killed_and_all_three_are_as_if_it_had_not_been(run, folder):
    calm = run("calm")
    start_tiers(calm)
    expected = finish_tiers(calm)
    tiers = run("killed")
    tiers.allow(0)
    start_tiers(tiers)

    def kill():
        tiers.kill("cloud_middle")
        start_middle(tiers, tiers.address("cloud"))

    tiers.disturb([kill] * 4, "cloud_middle", STEPS, random.Random(0))
    assert tiers.kills == 4
    found = finish_tiers(tiers)
    for one, other in zip(found, expected, strict=True):
        # Of the middle one, what had not been sent on is no part of it.
        assert one[: len(other)] == other[: len(one)]
    parts = [
        str(tiers.path(f"{side}.keras"))
        for side in ("edge", "cloud_middle", "cloud")
    ]
    assert main(["merge", *parts, "-o", str(folder / "merged.keras")]) == 0
    merged = keras.models.load_model(folder / "merged.keras")
    x, y = arrays()
    for name in ("exit_0", "exit_1", "final"):
        right = np.asarray(merged(x)[name]).argmax(-1) == y
        assert right.mean() > 0.6, name


def start_edges(edges, numbers=(1, 2)):
    for number in numbers:
        edges.start(
            f"edge_{number}",
            *("--data", f"training_data:batches_{number}"),
            *("--epochs", EPOCHS, "--average-every", 15),
            *("--checkpoint-every", 4, "--average-patience-s", 3000),
        )


def start_cloud(edges):
    edges.start(
        "cloud", "--average-quorum", 2, "--average-wait-s", 3000, *QUICK
    )


QUICK = ("--commit-every", 7)


def test_edges_that_are_averaged_are_killed(run, folder):
    """In step with each other, both become what they become in peace."""
    calm = run("calm")
    start_cloud(calm)
    start_edges(calm)
    for number in (1, 2):
        calm.wait(f"edge_{number}", 900)
    calm.stop("cloud")
    edges = run("killed")
    edges.allow(0)
    start_cloud(edges)
    start_edges(edges)

    def kill(side):
        edges.kill(side)
        if side == "cloud":
            start_cloud(edges)
        else:
            start_edges(edges, [int(side[-1])])

    kills = [functools.partial(kill, x) for x in ("edge_1", "cloud", "edge_2")]
    edges.disturb(kills, "edge_2", STEPS, random.Random(1))
    assert edges.kills == 3
    for number in (1, 2):
        edges.wait(f"edge_{number}", 900)
    edges.stop("cloud")
    for number in (1, 2):
        one, other = (x.state(f"edge_{number}") for x in (calm, edges))
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    one, other = (edges.state(f"edge_{number}") for number in (1, 2))
    assert any(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_memory_limit(run, folder):
    """Resident memory stays below the limit; what cannot fit is refused."""
    both = run("limited")
    both.start("cloud")
    data = ("--data", folder / "data.npz", "--batch-size", 32)
    edge = both.start("edge", *data, "--memory-limit", 64)
    assert edge.wait(600) != 0
    assert "No batch size does" in both.log("edge")
    summary = folder / "summary.json"
    both.start(
        "edge",
        *(*data, "--epochs", 20, "--memory-limit", 1500),
        *("--summary", summary),
    )
    both.wait("edge", 900)
    both.stop("cloud")
    peak = json.loads(summary.read_text())["peak_memory_mb"]
    assert 100 < peak < 1500
