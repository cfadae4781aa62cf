"""A model that was cut, and a real cloud worker for its second segment."""

import json
import subprocess
import sys
import tempfile
import types

import bundling
import keras
import numpy as np
import pytest
from proxy import Proxy
from waiting import poll

import keras_earlyexit as ee
from edge_worker import EdgeWorker


@pytest.fixture(scope="session")
def rows():
    return np.random.default_rng(0).normal(size=(200, 6)).astype("float32")


@pytest.fixture(scope="session")
def exported(rows, tmp_path_factory):
    """Paths of the bundles `edge`, `cloud` and `whole` of one model."""
    keras.utils.set_random_seed(1)
    model = bundling.make_model()
    bundling.set_thresholds(model, rows)
    folder = tmp_path_factory.mktemp("exported")
    ee.export(model, folder / "whole")
    ee.export(model, folder / "cut", cut="exit_0")
    return types.SimpleNamespace(
        edge=folder / "cut" / "segment_0",
        cloud=folder / "cut" / "segment_1",
        whole=folder / "whole",
    )


@pytest.fixture(scope="session")
def wanted(exported, rows):
    """What the model that is not cut answers."""
    return ee.load_bundle(exported.whole).predict_exits(rows)


class CloudProcess:
    """A cloud worker in a process of its own, on a port of the system's."""

    def __init__(self, bundle, *options):
        # Nobody empties a pipe, and who cannot log stands still.
        self._log = tempfile.NamedTemporaryFile("w+")
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "cloud_worker", "serve",
                "--bundle", str(bundle), "--listen", "127.0.0.1:0", *options,
            ],
            stdout=self._log,
        )  # fmt: skip
        try:
            poll(self._has_started, within_s=120)
        except BaseException:
            self._process.kill()
            self._process.wait()
            self._log.close()
            raise

    def lines(self):
        """What it has logged, a list of dicts."""
        with open(self._log.name) as file:
            return [json.loads(x) for x in file if x.endswith("\n")]

    @property
    def pid(self):
        return self._process.pid

    @property
    def address(self):
        return next(x["address"] for x in self.lines() if "address" in x)

    def _has_started(self):
        if self._process.poll() is not None:
            raise RuntimeError("the cloud worker has ended")
        return any("address" in line for line in self.lines())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


@pytest.fixture(scope="session")
def start_cloud():
    return CloudProcess


@pytest.fixture(scope="session")
def cloud(exported):
    """A cloud worker with the whole model, which also takes raw input."""
    with CloudProcess(
        exported.whole, "--insecure", "--allow-raw-input"
    ) as cloud:
        yield cloud


@pytest.fixture
def proxy(cloud):
    with Proxy(cloud.address) as proxy:
        yield proxy


@pytest.fixture
def worker(exported, proxy):
    with EdgeWorker(exported.edge, proxy.address, insecure=True) as worker:
        yield worker
