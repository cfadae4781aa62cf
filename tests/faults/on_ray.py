"""What the tests of workers on Ray have in common."""

import importlib.util

import pytest

MARKS = [
    pytest.mark.faults,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="Ray is not installed: pip install 'keras-earlyexit[serve]'",
    ),
]
# The machine may do much else; no answer may come later than this.
DEADLINE_S = 30.0
WITHIN_S = 300.0
