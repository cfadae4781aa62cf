"""The tests marked `backends` pass on the other Keras backends too.

A test file joins by `pytestmark = pytest.mark.backends`, or `backends_long` if
it takes long there and its numerics are those of files that joined; see
`child_runs.py`.
"""

import os

import child_runs
import keras
import pytest


@pytest.mark.backends
def test_this_process_runs_the_backend_that_was_asked_for():
    assert keras.backend.backend() == os.environ["KERAS_BACKEND"]


@pytest.mark.timeout(1260)
@pytest.mark.parametrize("backend", child_runs.BACKENDS)
def test_marked_tests_pass_on(backend):
    _pass(backend, "backends", 1200)


@pytest.mark.long
@pytest.mark.timeout(3660)
@pytest.mark.parametrize("backend", child_runs.BACKENDS)
def test_long_marked_tests_pass_on(backend):
    _pass(backend, "backends_long", 3600)


def _pass(backend, marker, within_s):
    if child_runs.IS_CHILD in os.environ:
        pytest.skip("this is the child run")
    if backend == keras.backend.backend():
        pytest.skip(f"this run is on {backend} already")
    if backend not in child_runs.others():
        pytest.skip(f"{backend} is not installed")
    status, output = child_runs.run(backend, marker, within_s)
    assert status == 0, f"tests fail on {backend}\n{output}"
