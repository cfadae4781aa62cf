"""Settings that must stand before Keras is imported, and what tests share."""

import os

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# TensorFlow's notes on the processor and on missing GPUs; errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    # There is a worker for each core: more threads only change places.
    for threads in (
        "TF_NUM_INTRAOP_THREADS",
        "TF_NUM_INTEROP_THREADS",
        "OMP_NUM_THREADS",
    ):
        os.environ.setdefault(threads, "1")

CHILD_RUNS = "test_marked_tests_pass_on"


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same random state, alone or among others."""
    import keras

    keras.utils.set_random_seed(0)


def pytest_collection_modifyitems(items):
    """What takes longest, the runs on other backends, comes first."""
    items.sort(key=lambda item: not item.name.startswith(CHILD_RUNS))
