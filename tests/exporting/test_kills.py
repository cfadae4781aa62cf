"""An export that is killed leaves a whole bundle under its name, or none."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from bundling import ON_TENSORFLOW

import keras_earlyexit as ee
from keras_earlyexit.bundle import writing

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not ON_TENSORFLOW, reason="needs LiteRT files"),
]

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Two models in turn, so that a mixture of two exports would not go together.
EXPORTER = f"""
import sys
sys.path.insert(0, {TESTS!r})
import bundling
import keras_earlyexit as ee
models = [bundling.make_model() for _ in range(2)]
print("ready", flush=True)
for number in range(10**9):
    ee.export(
        models[number % 2], sys.argv[1], cut="exit_0", overwrite=True
    )
    print("made", flush=True)
"""


@pytest.mark.timeout(1800)
def test_twenty_kills(rows, tmp_path):
    place = tmp_path / "around"
    place.mkdir()
    path = place / "made"
    moments = random.Random(0)
    seen, left_behind = set(), 0
    for kill in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", EXPORTER, path], stdout=subprocess.PIPE
        )
        process.stdout.readline()
        if kill % 2:
            # However slow the machine is, half of the kills find a bundle.
            process.stdout.readline()
        # What is waited for is no state: the moment is random.
        time.sleep(moments.uniform(0, 3))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        left_behind += sum(name != "made" for name in os.listdir(place))
        writing.remove_left_behind(path)
        assert os.listdir(place) in ([], ["made"])
        if not path.exists():
            assert not seen, "what was there is gone"
            continue
        edge, cloud = (ee.load_bundle(path / f"segment_{i}") for i in range(2))
        assert edge.manifest.weights_sha256 == cloud.manifest.weights_sha256
        here = edge.route(rows, np.inf)
        assert np.isfinite(cloud.predict_exits(here.feature).predictions).all()
        seen.add(edge.manifest.weights_sha256)
    assert seen, "no kill came after an export"
    assert left_behind, "no kill has hit an export"
