"""The tests marked `backends` pass on the other Keras backends too.

A test file joins by `pytestmark = pytest.mark.backends`; see `child_runs.py`.
"""

import os

import child_runs
import keras
import pytest


@pytest.mark.backends
def test_this_process_runs_the_backend_that_was_asked_for():
    assert keras.backend.backend() == os.environ["KERAS_BACKEND"]


@pytest.mark.timeout(1260)
@pytest.mark.skipif(
    child_runs.IS_CHILD in os.environ, reason="this is the child run"
)
@pytest.mark.parametrize("backend", child_runs.BACKENDS)
def test_marked_tests_pass_on(backend):
    if backend == keras.backend.backend():
        pytest.skip(f"this run is on {backend} already")
    if backend not in child_runs.others():
        pytest.skip(f"{backend} is not installed")
    status, output = child_runs.run(backend, within_s=1200)
    assert status == 0, f"tests fail on {backend}\n{output}"
