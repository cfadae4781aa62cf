"""One segment trained by two processes together, one of which is killed."""

import json
import os
import signal

import keras
import numpy as np
import pytest
from training_data import BATCHES
from waiting import poll

import keras_earlyexit as ee
from cloud_worker import cli
from keras_earlyexit import snapshots

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
EPOCHS = 6
EDGE = (
    *("--data", "training_data:batches", "--epochs", EPOCHS),
    *("--forward", "all"),
)


@pytest.fixture
def folder(tmp_path):
    """A model whose later segment has batch normalisation."""
    keras.utils.set_random_seed(0)
    row = keras.Input((8,), name="row")
    x = row
    for i in range(2):
        # A bias there has no gradient but rounding, which Adam would amplify.
        x = keras.layers.Dense(8, use_bias=False, name=f"dense_{i}")(x)
        x = keras.layers.BatchNormalization(momentum=0.8)(x)
        x = keras.layers.Activation("relu", name=f"relu_{i}")(x)
    outputs = keras.layers.Dense(3, activation="softmax", name="head")(x)
    model = ee.add_exits(keras.Model(row, outputs, name="small"), ["relu_0"])
    model.save(tmp_path / "model.keras")
    return tmp_path


def start(both, side):
    """Starts the chief, `cloud`, or the other one, `cloud_other`."""
    addresses = [both.address(f"{x}_crew") for x in ("chief", "other")]
    both.start(
        side,
        *("--workers", ",".join(addresses), "--peer-timeout-s", 20),
        *("--worker-index", int(side == "cloud_other")),
        *("--commit-every", 5),
    )


def keep(both, *sides):
    """Starts again who has ended, as whatever runs a program does."""
    for side in sides:
        process = both.running[side]
        if process.poll() not in (None, 0):
            both.restarts = getattr(both, "restarts", 0) + 1
            start(both, side)


def applied(both):
    try:
        return snapshots.read(both.path("cloud_state") / "ledger")[1]["steps"]
    except FileNotFoundError:
        return 0


def digest(both, side):
    """What the weights of a side were in the end."""
    lines = both.log(side).splitlines()
    found = [json.loads(x) for x in lines if "weights_sha256" in x]
    return found[-1]["weights_sha256"]


def weights(both):
    path = both.path("cloud.keras")
    found = keras.models.load_model(path)
    return list(map(keras.ops.convert_to_numpy, found.weights))


def finish(both):
    """Ends everything; the ledger's number of batches."""
    both.stop("cloud")
    both.wait("cloud_other")
    assert digest(both, "cloud") == digest(both, "cloud_other")
    return applied(both)


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.skipif(not ON_TENSORFLOW, reason="only TensorFlow has crews")
def test_two_train_as_one_also_when_one_is_killed(run):
    alone = run("alone")
    alone.start("cloud", "--commit-every", 5)
    alone.start("edge", *EDGE)
    alone.finish()
    together = run("together")
    for side in ("cloud", "cloud_other"):
        start(together, side)
    together.environment = {"SECONDS_A_BATCH": "0.2"}
    together.start("edge", *EDGE)
    for number, victim in enumerate(("cloud_other", "cloud"), 1):
        before = number * EPOCHS * BATCHES // 4
        poll(lambda before=before: applied(together) >= before, within_s=200)
        os.kill(together.running[victim].pid, signal.SIGKILL)
        together.running[victim].wait(10)
        start(together, victim)
    edge = together.running["edge"]

    def has_ended():
        keep(together, "cloud", "cloud_other")
        return edge.poll() is not None

    poll(has_ended, within_s=300)
    together.wait("edge")
    # Each batch once, not one twice, whatever was lost on the way.
    assert finish(together) == EPOCHS * BATCHES == applied(alone)
    assert "beginning anew" in together.log("cloud")
    for one, other in zip(weights(alone), weights(together), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    "flags",
    [
        ("--workers", "127.0.0.1:7000"),
        ("--workers", "127.0.0.1:7000,127.0.0.1:0"),
        ("--workers", "127.0.0.1:7000,127.0.0.1:7000"),
        ("--workers", "127.0.0.1:7000,127.0.0.1:7001", "--worker-index", "2"),
        ("--workers", "127.0.0.1:1,127.0.0.1:2", "--listen", "127.0.0.1:0"),
        ("--workers", "127.0.0.1:1,127.0.0.1:2", "--forward", "127.0.0.1:3"),
    ],
)
def test_crews_that_cannot_be_are_refused(flags, capsys):
    arguments = ["train", "--model", "model.keras", "--insecure", *flags]
    assert cli.main(arguments) == 2
    assert "Expected --workers" in capsys.readouterr().err


@pytest.mark.skipif(not ON_TENSORFLOW, reason="there it is allowed")
def test_devices_are_shared_on_jax_only(capsys):
    arguments = ["train", "--model", "model.keras", "--insecure"]
    assert cli.main([*arguments, "--data-parallel"]) == 2
    assert "Expected the JAX backend" in capsys.readouterr().err
