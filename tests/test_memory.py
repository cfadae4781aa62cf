"""Memory of messages is used again, not given back each time."""

import os
import subprocess
import sys

import pytest

# Some megabytes that come and go, as the features of batches do.
_PROGRAM = """
import resource, sys
from keras_earlyexit import memory

kept = sys.argv[1] == "keeps" and memory.keep_freed()
for turn in range(40):
    if turn == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    several = [bytes(bytearray(2 << 20)) for _ in range(4)]
    del several
after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(int(kept), after - before)
"""


def faults(mode):
    child = subprocess.run(
        [sys.executable, "-c", _PROGRAM, mode],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return map(int, child.stdout.split())


def test_pages_are_not_made_anew():
    kept, found = faults("keeps")
    if not kept:
        pytest.skip("not glibc")
    _, before = faults("gives back")
    # 30 turns of at least 8 MB in pages of 4 kB, if nothing is kept.
    assert before > 10_000
    assert found < before / 10
