"""Fuzzing the wire needs no Keras."""

import pytest


@pytest.fixture(autouse=True)
def seed():
    """In place of the one for all tests, which imports Keras."""
