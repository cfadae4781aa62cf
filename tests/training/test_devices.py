"""Steps on two devices, in a process in which JAX has two."""

import json
import os
import subprocess
import sys

import pytest

_CHILD = """
import json, sys
import keras, numpy as np
import keras_earlyexit as ee
from cloud_worker.training.devices import SpreadStepper, spread
from cloud_worker.training.segment import SegmentStepper

if sys.argv[1] == "spread":
    spread()
keras.utils.set_random_seed(0)
row = x = keras.Input((8,))
for i in range(2):
    x = keras.layers.Dense(8, use_bias=False, name=f"dense_{i}")(x)
    x = keras.layers.BatchNormalization(momentum=0.8)(x)
    x = keras.layers.Activation("relu", name=f"relu_{i}")(x)
x = keras.layers.Dense(3, activation="softmax")(x)
model = ee.add_exits(keras.Model(row, x), ["relu_0"])
segment = ee.split(model, "exit_0", "eenet_v2")[1]
segment.compile(keras.optimizers.Adam(0.01))
kind = SpreadStepper if sys.argv[1] == "spread" else SegmentStepper
stepper, rng = kind(segment), np.random.default_rng(0)
losses = []
for rows in (16, 7, 16, 1, 16):
    x = rng.normal(size=(rows, 8)).astype("float32")
    y = rng.integers(0, 3, rows)
    losses.append(stepper.step((x,), y, None)["loss"])
# What a ledger holds has to fit both.
state = stepper.state()
stepper.restore(state)
print(json.dumps({
    "losses": losses,
    "devices": len(segment.trainable_variables[0].value.sharding.device_set),
    "weights": [float(abs(array).sum()) for array in state],
}))
"""


def _run(kind):
    pytest.importorskip("jax")
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    return subprocess.run(
        [sys.executable, "-c", _CHILD, kind],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.long
def test_two_devices_step_as_one():
    found = [_run(kind) for kind in ("alone", "spread")]
    for one in found:
        assert one.returncode == 0, one.stderr
    alone, spread = (json.loads(x.stdout.splitlines()[-1]) for x in found)
    assert (alone["devices"], spread["devices"]) == (1, 2)
    assert spread["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    assert spread["weights"] == pytest.approx(
        alone["weights"], rel=1e-3, abs=1e-4
    )
