"""Settings that must stand before Keras is imported, and what tests share."""

import os

import child_runs
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# TensorFlow's notes on the processor and on missing GPUs; errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same random state, alone or among others."""
    import keras

    keras.utils.set_random_seed(0)


def pytest_collection_modifyitems(items):
    """What waits for the runs on other backends comes last."""
    items.sort(key=_waits_for_a_child)


def pytest_collection_finish(session):
    """Starts the runs on other backends, if somebody will wait for them."""
    session.config.child_runs = {}
    if session.config.option.collectonly:
        return
    names = [item.name for item in filter(_waits_for_a_child, session.items)]
    for backend in child_runs.others():
        if any(f"[{backend}]" in name for name in names):
            session.config.child_runs[backend] = child_runs.ChildRun(backend)


def pytest_unconfigure(config):
    for child in getattr(config, "child_runs", {}).values():
        child.close()


def _waits_for_a_child(item):
    return item.name.startswith("test_marked_tests_pass_on")
