"""What is encoded comes back, as exactly as its codec says."""

import ml_dtypes
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protos import split_pb2
from protos.codecs import NAMES, STEPPED, Codec
from protos.errors import WireError
from protos.identity import Feature
from protos.limits import Limits
from protos.tensors import decode, decode_all, encode

FLOAT32 = np.finfo(np.float32)


def spec_of(array, dtype=None):
    shape = (None, *array.shape[1:])
    return Feature("feature", shape, dtype or array.dtype.name)


def through(array, codec, rng=None):
    """An array as it arrives, by way of bytes."""
    data = encode(array, codec, rng).SerializeToString()
    message = split_pb2.Tensor.FromString(data)
    return decode(message, spec_of(array), len(array))


def allowed_error(array, name):
    """How far each number may be from what it was."""
    codec = Codec.parse(name)
    array = array.astype(np.float64)
    if codec.dtype == "float16":
        peak = np.abs(np.clip(array, -65504, 65504) - array)
        return peak + np.abs(array) * 2.0**-11 + 2.0**-25
    if codec.dtype == "bfloat16":
        return np.abs(array) * 2.0**-8 + 1e-38
    if codec.dtype == "float32":
        return 0 * array
    axes = None
    if codec.per_channel and 8 * array.shape[-1] <= array.size:
        axes = tuple(range(array.ndim - 1)) if array.ndim > 1 else None
    low, high = array.min(axis=axes), array.max(axis=axes)
    largest = np.maximum(np.abs(low), np.abs(high))
    # Half a step, and what float32 cannot tell apart at that magnitude.
    steps = 2 ** STEPPED[codec.dtype] - 1
    return (high - low) / (2 * steps) + largest * 2.0**-21 + 1e-35


def close(array, back, name):
    assert back.dtype == np.float32 and back.shape == array.shape
    error = np.abs(back.astype(np.float64) - array)
    return (error <= 1.0001 * allowed_error(array, name)).all()


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(rng, name):
    array = rng.normal(3, 2, size=(5, 7, 7, 12)).astype(np.float32)
    assert close(array, through(array, name), name)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(data=st.data())
def test_any_array_comes_back(name, data):
    array = data.draw(
        hnp.arrays(
            np.float32,
            hnp.array_shapes(max_dims=4, max_side=5),
            elements=st.floats(allow_nan=False, allow_infinity=False, width=32),
        )
    )
    assert close(array, through(array, name), name)


@pytest.mark.parametrize("name", ["uint8", "int8"])
@pytest.mark.parametrize(
    "values",
    [[0, 0], [7.25, 7.25], [-3e38, 3e38], [FLOAT32.max, FLOAT32.max]]
    + [[1e-45, 0], [FLOAT32.tiny, -FLOAT32.tiny], [1000, 1000.001]],
)
def test_ranges_at_the_edge(name, values):
    for codec in (name, f"{name}_channel"):
        array = np.repeat(np.float32([values]), 32, axis=0)
        assert close(array, through(array, codec), codec)


@pytest.mark.parametrize("largest", [2e37, 3e38])
def test_four_bits_of_a_wide_range(largest):
    array = np.repeat(np.float32([[0, largest]]), 32, axis=0)
    for codec in ("uint4+zstd", "uint4_channel+zstd"):
        assert close(array, through(array, codec), codec)


def test_a_constant_is_exact():
    array = np.full((2, 3), 0.1, np.float32)
    for name in ("uint8", "int8", "uint8_channel"):
        np.testing.assert_array_equal(through(array, name), array)


def test_four_bits_take_half_a_byte_or_less(rng):
    feature = np.maximum(rng.normal(size=(8, 8, 8, 16)), 0).astype(np.float32)
    for codec in ("uint4+zstd", "uint4_channel+zstd"):
        message = encode(feature, codec, rng)
        assert len(message.data) < 0.45 * feature.size
        back = through(feature, codec)
        assert len(np.unique(back[..., 0])) <= 16
        assert (back[feature == 0] == 0).all()


def test_a_scale_for_each_channel_keeps_small_channels(rng):
    array = rng.normal(size=(64, 2)).astype(np.float32) * [1, 1000]
    array = array.astype(np.float32)
    message = encode(array, "uint8_channel")
    assert len(message.scale) == len(message.offset) == 2
    error = np.abs(through(array, "uint8_channel") - array).max(axis=0)
    assert error[0] < 0.02 < 1 < error[1]


def test_no_scales_that_outweigh_the_numbers():
    array = np.arange(12, dtype=np.float32).reshape(1, 12)
    assert len(encode(array, "int8_channel").scale) == 1


def test_rounding_is_the_same_each_time_without_a_generator(rng):
    array = rng.normal(size=(4, 50)).astype(np.float32)
    assert encode(array, "uint8") == encode(array, "uint8")
    halves = np.float32([[0, 0.5, 1.5, 2.5, 255]])
    assert list(encode(halves, "uint8").data) == [0, 0, 2, 2, 255]


def test_whole_numbers_stay_whole_however_they_are_rounded(rng):
    array = np.tile(np.arange(256, dtype=np.float32), (8192, 1))
    np.testing.assert_array_equal(through(array, "uint8", rng), array)


@pytest.mark.parametrize("name", ["uint8", "int8"])
def test_stochastic_rounding_is_right_on_average(name, rng):
    array = np.float32([[0, 10.25, 99.5, 255]])
    backs = [through(array, name, rng) for _ in range(2000)]
    assert len({back.tobytes() for back in backs}) > 2
    assert np.abs(np.mean(backs, axis=0) - array).max() < 0.06
    assert np.abs(backs - array).max() < 1.001


@pytest.mark.parametrize(
    ("dtype", "carrier"),
    [
        ("bool", "UINT8"),
        ("uint8", "UINT8"),
        ("int8", "INT8"),
        ("uint16", "INT32"),
        ("int16", "INT32"),
        ("int32", "INT32"),
        ("uint32", "INT64"),
        ("int64", "INT64"),
    ],
)
def test_whole_numbers_are_exact_in_every_codec(dtype, carrier):
    ends = (0, 1)
    if dtype != "bool":
        ends = (np.iinfo(dtype).min, np.iinfo(dtype).max)
    array = np.array([ends] * 20, dtype)
    for name in NAMES:
        message = encode(array, name)
        assert split_pb2.DType.Name(message.dtype) == carrier
        back = decode(message, spec_of(array), 20)
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)


def test_other_floats_become_float32():
    for dtype in (np.float64, np.float16, ml_dtypes.bfloat16):
        array = np.array([[1.5, -2]], dtype)
        message = encode(array, "float32")
        back = decode(message, spec_of(array, "float32"), 1)
        np.testing.assert_array_equal(back, np.float32([[1.5, -2]]))
    wide = np.array([[1.5, -2]])
    assert decode(encode(wide), spec_of(wide), 1).dtype == np.float64


def test_any_order_in_memory(rng):
    array = rng.normal(size=(6, 4, 3)).astype(np.float32)
    for view in (array.T, array[::2, ::-1], array.astype(">f4")):
        for name in ("float32", "float16", "uint8_channel", "bfloat16"):
            back = through(view.astype(view.dtype, copy=False), name)
            assert close(view.astype(np.float32), back, name)


def test_compressed_only_where_that_is_shorter(rng):
    zeros = np.zeros((10, 100), np.float32)
    assert encode(zeros, "float32+zstd").compression == split_pb2.ZSTD
    assert len(encode(zeros, "float32+zstd").data) < 100
    noise = rng.integers(0, 256, (10, 100)).astype(np.uint8)
    assert encode(noise, "uint8+zstd").compression == split_pb2.NONE


def test_compressed_by_what_goes_with_the_numbers(rng):
    feature = np.maximum(rng.normal(size=(32, 8, 8, 32)), 0).astype("float32")
    words = rng.integers(0, 256, (100, 64)).astype(np.uint8)
    padded = words[rng.integers(1, 100, (32, 64))]
    padded[:, 20:] = words[0]

    def over_level_1(array):
        message = encode(array, "uint4+zstd", rng)
        stored = zstandard.decompress(message.data)
        return len(message.data) / len(zstandard.compress(stored, 1))

    assert over_level_1(feature) < 0.93
    assert over_level_1(padded.astype("float32")) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_a_message_weighs_what_its_numbers_weigh(name, rng):
    array = rng.random((16, 64, 64), np.float32)
    message = encode(array, name)
    request = split_pb2.InferRequest(
        request_id="0" * 32,
        generation=f"resnet20_cifar10@{'0' * 12}.{'0' * 8}.1",
        timeout_ms=2000,
        tensors=[message],
    )
    assert len(message.data) >= 65536 * (0.4 if "uint4" in name else 0.9)
    assert request.ByteSize() <= 1.02 * len(message.data)
    if not name.endswith(("_channel", "_channel+zstd")):
        # The same whatever the size: 120 bytes and a few.
        assert request.ByteSize() - len(message.data) <= 130


def test_raw_floats_are_not_copied():
    message = encode(np.ones((4, 100), np.float32))
    back = decode(message, spec_of(np.ones((4, 100), np.float32)), 4)
    assert not back.flags.owndata and not back.flags.writeable


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_what_is_not_finite_is_not_sent(bad):
    array = np.array([[1.0, bad]])
    for name in ("float32", "float16", "uint8"):
        with pytest.raises(ValueError, match="finite"):
            encode(array, name)


def test_scores_may_be_nan():
    scores = np.float32([0.5, np.nan, np.inf])
    message = encode(scores, finite=False)
    back = decode(message, spec_of(scores), 3, finite=False)
    np.testing.assert_array_equal(back, scores)
    with pytest.raises(WireError, match="not finite"):
        decode(message, spec_of(scores), 3)
    with pytest.raises(ValueError, match="finite=False"):
        encode(scores, "uint8", finite=False)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 0)])
def test_nothing_is_not_sent(shape):
    with pytest.raises(ValueError, match="x\\[None\\]"):
        encode(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    "array",
    [["text"], [b"x"], [1j], [object()], np.uint64([1])],
    ids=["str", "bytes", "complex", "object", "uint64"],
)
def test_what_cannot_cross(array):
    with pytest.raises(TypeError, match="Received: an array of dtype"):
        encode(np.asarray(array))


def test_all_tensors_of_a_request(rng):
    feature = rng.normal(size=(3, 4, 2)).astype(np.float32)
    carry = np.arange(3, dtype=np.int32)
    specs = [spec_of(feature), spec_of(carry)]
    limits = Limits(max_rows=3, max_message_bytes=1000)
    messages = [encode(feature), encode(carry)]
    back = decode_all(messages, specs, limits)
    for ours, theirs in zip(back, (feature, carry), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(WireError, match="equally many rows"):
        decode_all([encode(feature), encode(carry[:2])], specs, limits)
    with pytest.raises(WireError, match="Expected 2 tensors"):
        decode_all(messages[:1], specs, limits)
