import keras
import numpy as np
import pytest
from bundling import make_model, set_thresholds
from faults.clients import Reference
from faults.history import History
from faults.workers import CloudProcess

import keras_earlyexit as ee
from edge_worker import EdgeWorker


def export(folder, seed):
    """Both halves of a model, and what the whole of it answers."""
    keras.utils.set_random_seed(seed)
    model = make_model()
    x = np.random.default_rng(0).normal(size=(200, 6)).astype("float32")
    set_thresholds(model, x)
    ee.export(model, folder / "whole")
    ee.export(model, folder / "cut", cut="exit_0")
    result = ee.load_bundle(folder / "whole").predict_exits(x)
    # About half of the samples have to go on for any of this to mean much.
    assert 0.3 < (result.exit_index > 0).mean() < 0.7
    return folder / "cut", Reference(x, result)


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """Folders of both halves of a model, and what the whole of it answers."""
    return export(tmp_path_factory.mktemp("split"), seed=0)


@pytest.fixture(scope="session")
def newer_parts(tmp_path_factory):
    """The same of a model with other weights."""
    return export(tmp_path_factory.mktemp("newer"), seed=1)


@pytest.fixture
def reference(parts):
    return parts[1]


@pytest.fixture
def cloud(parts, tmp_path):
    """A cloud worker in a process of its own, running."""
    log = tmp_path / "cloud.log"
    with CloudProcess(parts[0] / "segment_1", log) as process:
        yield process


@pytest.fixture
def history(tmp_path):
    """A history that is written down, for whoever looks at a failure."""
    found = History(tmp_path / "history.jsonl")
    yield found
    found.close()


@pytest.fixture
def edge(parts):
    """Makes edge workers that are closed in the end."""
    made = []

    def make(target, **settings):
        worker = EdgeWorker(
            parts[0] / "segment_0", target, insecure=True, **settings
        )
        made.append(worker)
        return worker

    yield make
    for worker in made:
        worker.close()
