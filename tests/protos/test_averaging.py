"""Weights that cross are what was sent, or are refused."""

import numpy as np
import pytest

from protos import averaging, split_pb2
from protos.errors import DamagedData, WireError

ARRAYS = [
    np.arange(6, dtype="float32").reshape(2, 3),
    np.array(7, "float32"),
    np.array([8.5], "float16"),
]
SHAPES = [x.shape for x in ARRAYS]
VECTOR = averaging.join(ARRAYS)


def test_there_and_back():
    request = averaging.offer("g", 3, 2, 40, VECTOR)
    request = split_pb2.AverageRequest.FromString(request.SerializeToString())
    assert averaging.num_numbers(SHAPES) == len(VECTOR) == 8
    found = averaging.part(averaging.read(request, 2, 8), SHAPES)
    for one, other in zip(found, ARRAYS, strict=True):
        assert one.shape == other.shape and (one == other).all()
    nothing = averaging.reply(0, None, 0, 0)
    assert averaging.read(nothing, 0, 8) is None


def test_form():
    assert averaging.form_sha256([(2, 3)]) != averaging.form_sha256([(3, 2)])


def test_damage_is_found():
    request = averaging.offer("g", 3, 2, 40, VECTOR)
    with pytest.raises(DamagedData):
        averaging.read(request, 3, 8)
    data = bytearray(request.weights.data)
    data[5] ^= 1
    request.weights.data = bytes(data)
    with pytest.raises(DamagedData):
        averaging.read(request, 2, 8)


@pytest.mark.parametrize(
    "vector",
    [VECTOR[:-1], np.append(VECTOR, 1), VECTOR[None], VECTOR + 1e7],
)
def test_what_cannot_be_right_is_refused(vector):
    request = averaging.offer("g", 3, 2, 40, vector.astype("float32"))
    with pytest.raises(WireError):
        averaging.read(request, 2, 8)


def test_numbers_that_are_none_are_refused():
    request = averaging.offer("g", 3, 2, 40, VECTOR)
    request.weights.data = np.full(8, np.nan, "<f4").tobytes()
    request.crc32 = averaging._checksum(request.weights, 2, 40)
    with pytest.raises(WireError, match="finite"):
        averaging.read(request, 2, 8)
