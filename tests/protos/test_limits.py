"""How much a message may hold."""

import pytest

from protos.identity import Feature
from protos.limits import MAX_OPEN_BYTES, Limits


def spec(*sizes, dtype="float32"):
    return Feature("feature", (None, *sizes), dtype)


def test_twice_the_largest_batch_and_a_margin():
    limits = Limits.for_specs([spec(8, 8, 16), spec(4)], max_rows=32)
    assert limits.max_message_bytes == 2 * 32 * (1024 + 4) * 4 + 65536
    assert (limits.max_rows, limits.max_tensors, limits.max_rank) == (32, 8, 6)


def test_wide_integers_count_eight_bytes():
    limits = Limits.for_specs([spec(10, dtype="int64")], max_rows=1)
    assert limits.max_message_bytes == 2 * 80 + 65536


def test_open_sizes_have_a_bound_of_their_own():
    limits = Limits.for_specs([spec(None, 16)], max_rows=1000)
    assert limits.max_message_bytes == 2 * MAX_OPEN_BYTES + 65536


def test_batches_that_are_no_message_are_refused():
    with pytest.raises(ValueError, match="Lower max_rows to 10"):
        Limits.for_specs([spec(1024, 1024, 24)], max_rows=16)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, None, 1 << 31])
def test_only_positive_integers(value):
    with pytest.raises(ValueError, match="max_rows.*Received"):
        Limits(max_rows=value, max_message_bytes=10)
