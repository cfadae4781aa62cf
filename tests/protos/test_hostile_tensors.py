"""Messages that lie: refused, quickly, and before memory is spent on them."""

import os
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from protos import split_pb2
from protos.codecs import NAMES
from protos.errors import TooLarge, WireError
from protos.identity import Feature
from protos.limits import MAX_OPEN_BYTES, Limits
from protos.tensors import decode, decode_all, encode

ROWS = 8
FEATURE = Feature("feature", (None, 16, 16), "float32")
IMAGE = Feature("image", (None, 16, 16), "uint8")
OPEN = Feature("text", (None, None, None), "float32")
HUGE = 1 << 62


def honest(codec="float32", rows=2):
    ramp = np.linspace(-1, 1, rows * 256, dtype=np.float32)
    return encode(ramp.reshape(rows, 16, 16), codec)


def changed(codec="float32", **fields):
    """An honest message with other fields, repeated ones replaced."""
    message = honest(codec)
    for name, value in fields.items():
        message.ClearField(name)
        if isinstance(value, list):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    return message


def frame(num_bytes, **options):
    """That many zeros, compressed; a frame of a few bytes."""
    return zstandard.ZstdCompressor(**options).compress(bytes(num_bytes))


def claiming(num_bytes):
    """A frame whose header says a size that it does not have."""
    # Magic number, a descriptor for a size of 8 bytes, a window, the size,
    # and a last block of one repeated byte.
    head = b"\x28\xb5\x2f\xfd\xc0\x00" + num_bytes.to_bytes(8, "little")
    return head + b"\x0b\x00\x00\x00"


ZSTD = split_pb2.ZSTD
LIES = {
    "no type": changed(dtype=0),
    "unknown type": changed(dtype=99),
    "negative type": changed(dtype=-1),
    "integers for floats": changed(dtype=split_pb2.INT32),
    "half the size of number": changed(dtype=split_pb2.FLOAT16),
    "no shape": changed(shape=[]),
    "too few axes": changed(shape=[2, 256]),
    "too many axes": changed(shape=[2, 16, 16, 1]),
    "a million axes": changed(shape=[1] * 1_000_000),
    "no rows": changed(shape=[0, 16, 16], data=b""),
    "an axis of 0": changed(shape=[2, 0, 16], data=b""),
    "an axis of 2^63": changed(shape=[2, 1 << 63, 16]),
    "rows of 2^63": changed(shape=[1 << 63, 16, 16]),
    "all of 2^64": changed(shape=[(1 << 64) - 1] * 3),
    "a product of 2^64": changed(shape=[1 << 32, 1 << 32, 1]),
    "more rows than data": changed(shape=[3, 16, 16]),
    "fewer rows than data": changed(shape=[1, 16, 16]),
    "too many rows": honest(rows=ROWS + 1),
    "no data": changed(data=b""),
    "one byte less": changed(data=bytes(2047)),
    "one byte more": changed(data=bytes(2049)),
    "NaN": changed(data=np.full(512, np.nan, "<f4").tobytes()),
    "infinity": changed(data=np.full(512, -np.inf, "<f4").tobytes()),
    "a signalling NaN": changed(data=b"\x01\x00\x80\x7f" * 512),
    "NaN in float16": changed("float16", data=b"\x01\x7e" * 512),
    "a signalling NaN in float16": changed("float16", data=b"\x01\x7c" * 512),
    "infinity in bfloat16": changed("bfloat16", data=b"\x80\x7f" * 512),
    "scales for float32": changed(scale=[1.0]),
    "offsets for float32": changed(offset=[1.0]),
    "unknown compression": changed(compression=7),
    "negative compression": changed(compression=-1),
    "no frame": changed(compression=ZSTD),
    "an empty frame": changed(compression=ZSTD, data=frame(0)),
    "nothing as a frame": changed(compression=ZSTD, data=b""),
    "half a frame": changed(compression=ZSTD, data=frame(2048)[:-5]),
    "a flipped bit": changed(
        compression=ZSTD, data=frame(2048, write_checksum=True)[:-1] + b"\0"
    ),
    "a frame too long": changed(compression=ZSTD, data=frame(2049)),
    "a bomb": changed(compression=ZSTD, data=frame(50_000_000)),
    "a frame and more": changed(compression=ZSTD, data=frame(2048) + b"\0"),
    "two frames": changed(compression=ZSTD, data=frame(1024) * 2),
    "a frame of unknown size": changed(
        compression=ZSTD, data=frame(2048, write_content_size=False)
    ),
    "a frame that claims 2^62": changed(compression=ZSTD, data=claiming(HUGE)),
    "a frame that claims too much": changed(
        compression=ZSTD, data=claiming(2048)
    ),
    "a frame to skip": changed(
        compression=ZSTD,
        data=b"\x50\x2a\x4d\x18" + (2048).to_bytes(4, "little") + bytes(2048),
    ),
    "no scale": changed("uint8", scale=[]),
    "no offset": changed("uint8", offset=[]),
    "two scales": changed("uint8", scale=[1, 1], offset=[1, 1]),
    "many scales, one offset": changed("uint8", scale=[1] * 16),
    "a million scales": changed("uint8", scale=[1] * 1_000_000),
    "a scale of 0": changed("uint8", scale=[0]),
    "a negative scale": changed("uint8", scale=[-1]),
    "a scale of NaN": changed("int8", scale=[np.nan]),
    "a scale of infinity": changed("int8", scale=[np.inf]),
    "an offset of NaN": changed("uint8", offset=[np.nan]),
    "an offset of infinity": changed("uint8", offset=[-np.inf]),
    "a scale of 1e38": changed("uint8", scale=[1e38]),
    "one scale of many": changed(
        "int8_channel", scale=[1] * 15 + [1e38], offset=[0] * 16
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused(lie):
    with pytest.raises(WireError, match="^Expected.*Received.*[.]$") as caught:
        decode(LIES[lie], FEATURE, ROWS)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_costs_no_more_than_its_payload(lie):
    message = LIES[lie]
    payload = message.ByteSize()
    tracemalloc.start()
    try:
        start = time.perf_counter()
        with pytest.raises(WireError):
            decode(message, FEATURE, ROWS)
        seconds = time.perf_counter() - start
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # What is proven and then looked at is the spec's size, 8 kB here.
    assert peak <= payload + 16 * 1024 + ROWS * 16 * 16 * 4
    assert seconds < 0.1


def test_a_process_with_little_memory_lives():
    """The claims that would need most, where 1 GB is all there is."""
    program = (
        "import resource; G = 1 << 30\n"
        "resource.setrlimit(resource.RLIMIT_AS, (G, G))\n"
        "import numpy as np\n"
        "from protos import split_pb2\n"
        "from protos.errors import WireError\n"
        "from protos.identity import Feature\n"
        "from protos.tensors import decode\n"
        "spec = Feature('x', (None, None, 65536), 'float32')\n"
        "count = 0\n"
        "for rows in (8, 1 << 20, 1 << 40, 1 << 63):\n"
        "    for size in (1, 1 << 14, 1 << 40, 1 << 63):\n"
        "        for dtype in range(1, 6):\n"
        "            for form in range(2):\n"
        "                m = split_pb2.Tensor(\n"
        "                    dtype=dtype, shape=[rows, size, 65536],\n"
        "                    compression=form, data=b'x' * 1000,\n"
        "                    scale=[1], offset=[1])\n"
        "                try: decode(m, spec, 1 << 62)\n"
        "                except WireError: count += 1\n"
        "print(count)"
    )
    child = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env={
            **os.environ,
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout == "160\n"


def test_too_many_rows_are_too_large():
    with pytest.raises(TooLarge, match="at most 8 rows"):
        decode(honest(rows=9), FEATURE, ROWS)


def test_open_sizes_have_an_end():
    num_bytes = MAX_OPEN_BYTES + 4096
    shape = [1, num_bytes // 1024, 256]
    message = changed(
        shape=shape, compression=ZSTD, data=frame(num_bytes // 1024 * 1024)
    )
    with pytest.raises(TooLarge, match="text"):
        decode(message, OPEN, ROWS)
    small = changed(shape=[2, 4, 64])
    assert decode(small, OPEN, ROWS).shape == (2, 4, 64)


def test_extreme_but_honest_numbers_pass():
    message = changed(data=np.full(512, 1e38, "<f4").tobytes())
    assert decode(message, FEATURE, ROWS).max() == np.float32(1e38)


def test_a_signalling_nan_does_not_warn_where_nan_may_be():
    message = changed(data=b"\x01\x00\x80\x7f" * 512)
    wide = FEATURE._replace(dtype="float64")
    assert np.isnan(decode(message, wide, ROWS, finite=False)).all()


@pytest.mark.parametrize(
    "fields",
    [
        {"scale": [1.0], "offset": [0.0]},
        {"dtype": split_pb2.INT8},
        {"dtype": split_pb2.FLOAT32, "data": bytes(2048)},
    ],
    ids=["scales", "int8", "float32"],
)
def test_lies_about_whole_numbers(fields):
    message = encode(np.zeros((2, 16, 16), np.uint8))
    for name, value in fields.items():
        if isinstance(value, list):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    with pytest.raises(WireError):
        decode(message, IMAGE, ROWS)


@pytest.mark.parametrize(
    ("dtype", "bad"), [("bool", 2), ("uint16", -1), ("int16", 1 << 15)]
)
def test_whole_numbers_beyond_their_type(dtype, bad):
    carrier = np.uint8 if dtype == "bool" else np.int32
    message = encode(np.array([bad], carrier))
    with pytest.raises(WireError, match="beyond"):
        decode(message, Feature("x", (None,), dtype), ROWS)


@pytest.mark.parametrize("dtype", ["string", "uint64", "float16", "nonsense"])
def test_types_that_cannot_cross(dtype):
    message = encode(np.zeros(1, np.uint8))
    with pytest.raises(WireError):
        decode(message, Feature("x", (None,), dtype), ROWS)


def test_ten_thousand_tensors():
    limits = Limits(max_rows=ROWS, max_message_bytes=1 << 20)
    request = split_pb2.InferRequest(tensors=[honest()] * 10_000)
    for count in (1, 10_000):
        with pytest.raises(WireError, match="Received: 10000"):
            decode_all(request.tensors, [FEATURE] * count, limits)


def test_the_limit_of_the_rank_holds():
    limits = Limits(max_rows=ROWS, max_message_bytes=1 << 20, max_rank=2)
    with pytest.raises(WireError, match="3 axes"):
        decode_all([honest()], [FEATURE], limits)


SIZES = st.one_of(st.integers(0, 40), st.integers(0, (1 << 64) - 1))
FLOATS = st.lists(st.floats(width=32), max_size=20)


@st.composite
def lying(draw):
    """An honest message in which some fields are anything."""
    message = honest(draw(st.sampled_from(NAMES)))
    anything = {
        "dtype": st.integers(-(1 << 31), (1 << 31) - 1) | st.integers(0, 8),
        "shape": st.lists(SIZES, max_size=8),
        "compression": st.integers(-2, 3),
        "data": st.binary(max_size=3000),
        "scale": FLOATS,
        "offset": FLOATS,
    }
    for name in draw(st.sets(st.sampled_from(sorted(anything)), min_size=1)):
        value = draw(anything[name])
        message.ClearField(name)
        if isinstance(value, list):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    return message


@settings(deadline=None)
@given(lying(), st.sampled_from([FEATURE, IMAGE, OPEN]))
def test_any_lie_is_refused_or_harmless(message, spec):
    try:
        array = decode(message, spec, ROWS)
    except WireError:
        return
    assert array.dtype == spec.dtype and array.ndim == len(spec.shape)
    assert 1 <= len(array) <= ROWS and np.isfinite(array).all()
