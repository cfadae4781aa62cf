"""Arrays as messages and back.

A sender may claim anything. So `decode` proves, in an order that does the
cheap things first, that the type, the shape and the length of a message are
those that the model takes, and that what is compressed has that length too,
before it allocates anything; what is left is looked at for NaN and infinity.
"""

import math

import ml_dtypes
import numpy as np
import zstandard

from protos import affine, split_pb2
from protos.codecs import STEPPED, Codec
from protos.errors import TooLarge, WireError
from protos.limits import MAX_OPEN_BYTES, MAX_RANK

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_FLOAT32_MAX = float(np.finfo(np.float32).max)
# On the wire the least significant byte is the first.
_WIRE = {
    split_pb2.FLOAT32: np.dtype("<f4"),
    split_pb2.FLOAT16: np.dtype("<f2"),
    split_pb2.BFLOAT16: np.dtype("<u2"),
    split_pb2.INT8: np.dtype("i1"),
    split_pb2.UINT8: np.dtype("u1"),
    split_pb2.INT32: np.dtype("<i4"),
    split_pb2.INT64: np.dtype("<i8"),
}
_FLOATS = ("float32", "float64")
_OF_FLOATS = {
    "float32": split_pb2.FLOAT32,
    "float16": split_pb2.FLOAT16,
    "bfloat16": split_pb2.BFLOAT16,
    "int8": split_pb2.INT8,
    "uint8": split_pb2.UINT8,
    "uint4": split_pb2.UINT8,
}
_EIGHT_BITS = (split_pb2.INT8, split_pb2.UINT8)
_OF_INTEGERS = {
    "bool": split_pb2.UINT8,
    "uint8": split_pb2.UINT8,
    "int8": split_pb2.INT8,
    "int16": split_pb2.INT32,
    "uint16": split_pb2.INT32,
    "int32": split_pb2.INT32,
    "uint32": split_pb2.INT64,
    "int64": split_pb2.INT64,
}
# The largest values that the narrower floats have.
_PEAKS = {
    "float16": float(np.finfo(np.float16).max),
    "bfloat16": float(ml_dtypes.finfo(_BFLOAT16).max),
}
# What is rounded at random hardly repeats itself. A search for repetitions
# finds short ones, by chance, which cost more bytes than the numbers alone,
# and takes longer. Padding and pictures drawn by hand do repeat themselves.
_COMPRESSIONS = (
    {
        "compression_params": zstandard.ZstdCompressionParameters(
            strategy=zstandard.STRATEGY_FAST,
            window_log=17,
            hash_log=6,
            min_match=7,
        )
    },
    {"level": 1},
)
_SAMPLE_SHARE, _MIN_SAMPLE = 16, 4096


def encode(array, codec="float32", rng=None, *, finite=True, message=None):
    """Makes a message of an array.

    Args:
        array: NumPy array, the batch first. Whole numbers and booleans keep
            their values whatever the codec; floats become float32 first.
        codec: A `Codec` or its name.
        rng: NumPy `Generator` for the stochastic rounding of 8- and 4-bit
            codecs; they round half to even if `None`.
        finite: `False` lets NaN and infinity through, for which the codec
            has to keep float32.
        message: An empty `split_pb2.Tensor` to fill, such as one that is part
            of another message: put there later, it would be copied. `None`
            makes one.

    Returns:
        A `split_pb2.Tensor`. It is compressed only where that is shorter.

    Raises:
        TypeError: If the array holds what cannot cross.
        ValueError: If it is empty, has no axis, is not finite, or if `finite`
            does not go with the codec.

    Example:

    >>> message = encode(np.ones((2, 3), np.float32), "float16")
    >>> len(message.data)
    12
    """
    codec = Codec.parse(codec)
    array = np.asarray(array)
    if array.ndim == 0 or array.size == 0:
        raise ValueError(
            "Expected an array with rows and no axis of size 0. Received: "
            f"shape {array.shape}. Pass a batch, `x[None]` for one sample."
        )
    if array.dtype == _BFLOAT16:
        array = array.astype(np.float32)
    message = split_pb2.Tensor() if message is None else message
    message.shape.extend(array.shape)
    if array.dtype.kind == "f":
        message.dtype = _OF_FLOATS[codec.dtype]
        stored = _store(array, codec, rng, finite, message)
    elif array.dtype.name in _OF_INTEGERS:
        message.dtype = _OF_INTEGERS[array.dtype.name]
        stored = array
    else:
        raise TypeError(
            "Expected floats, booleans, or integers that int64 holds. "
            f"Received: an array of dtype {array.dtype}. Convert it first."
        )
    stored = np.ascontiguousarray(stored, _WIRE[message.dtype])
    if codec.is_compressed:
        short = _compress(stored)
        if len(short) < stored.nbytes:
            message.data = short
            message.compression = split_pb2.ZSTD
            return message
    message.data = stored.tobytes()
    return message


def _store(array, codec, rng, finite, message):
    """Floats in the form of a codec; notes scale and offset."""
    if not finite:
        if codec.dtype != "float32":
            raise ValueError(
                "Expected the codec float32 for values that need not be "
                f"finite. Received: codec={str(codec)!r}. Leave out "
                "`finite=False`, or pass 'float32'."
            )
        return array
    if codec.dtype == "float32" and _is_finite_float32(array):
        return array
    peak = _peak(array)
    if not peak <= _FLOAT32_MAX:
        raise ValueError(
            "Expected finite numbers that float32 has. Received: an array of "
            f"shape {array.shape} with {peak}. Look for NaN and overflows in "
            "what the stage returns."
        )
    array = np.asarray(array, np.float32)
    if codec.dtype in STEPPED:
        stored, scale, offset = affine.quantize(
            array,
            _WIRE[message.dtype].name,
            codec.per_channel,
            rng,
            STEPPED[codec.dtype],
        )
        message.scale.extend(scale.tolist())
        message.offset.extend(offset.tolist())
        return stored
    if peak > _PEAKS.get(codec.dtype, math.inf):
        array = np.clip(array, -_PEAKS[codec.dtype], _PEAKS[codec.dtype])
    if codec.dtype == "bfloat16":
        return array.astype(_BFLOAT16).view(np.uint16)
    return array


def _compress(stored):
    """The bytes of an array, in the way that is best for the first of them."""
    data = stored.reshape(-1).view(np.uint8)
    sample = data[: max(_MIN_SAMPLE, len(data) // _SAMPLE_SHARE)]
    best = min(_COMPRESSIONS, key=lambda way: len(_compressed(sample, way)))
    return _compressed(data, best)


def _compressed(data, way):
    return zstandard.ZstdCompressor(**way).compress(data)


def _is_finite_float32(array):
    return array.dtype == np.float32 and bool(np.isfinite(array).all())


def _peak(array):
    """The largest magnitude; NaN if there is one. Makes no copy."""
    low, high = float(array.min()), float(array.max())
    return low if math.isnan(low) else max(-low, high)


def decode(message, spec, max_rows, *, finite=True):
    """Makes an array of a message, or proves that it cannot be right.

    Args:
        message: A `split_pb2.Tensor` from anybody.
        spec: What it has to be: an object with `.name`, `.shape` (the batch
            first and `None`; `None` elsewhere stands for an open size) and
            `.dtype`.
        max_rows: The most rows that it may have.
        finite: Whether NaN and infinity are refused.

    Returns:
        An array of the spec's type. It may share memory with the message's
        bytes, and is read-only then.

    Raises:
        TooLarge: If it has more rows, or more bytes where sizes are open,
            than the limits allow.
        WireError: If it cannot be right for another reason.

    Example:

    >>> from protos.identity import Feature
    >>> message = encode(np.ones((2, 3), np.float32), "uint8+zstd")
    >>> decode(message, Feature("feature", (None, 3), "float32"), 8)
    array([[1., 1., 1.],
           [1., 1., 1.]], dtype=float32)
    """
    shape = _prove_shape(message, spec, max_rows, MAX_RANK)
    return _read(message, spec, shape, finite)


def decode_all(messages, specs, limits):
    """Makes an array of each message, all with equally many rows.

    Args:
        messages: The `split_pb2.Tensor`s of a request.
        specs: What they have to be, see `decode`.
        limits: `Limits`.

    Returns:
        A tuple of arrays.

    Raises:
        TooLarge: If there is more than the limits allow.
        WireError: If they cannot be right for another reason.
    """
    if len(messages) > limits.max_tensors or len(messages) != len(specs):
        raise WireError(
            f"Expected {len(specs)} tensors, at most {limits.max_tensors}. "
            f"Received: {len(messages)}. Both sides need parts of the same "
            "model."
        )
    shapes = [
        _prove_shape(message, spec, limits.max_rows, limits.max_rank)
        for message, spec in zip(messages, specs, strict=True)
    ]
    rows = {shape[0] for shape in shapes}
    if len(rows) > 1:
        raise WireError(
            "Expected equally many rows in all tensors. Received: "
            f"{[shape[0] for shape in shapes]}. Send whole batches."
        )
    return tuple(
        _read(message, spec, shape, finite=True)
        for message, spec, shape in zip(messages, specs, shapes, strict=True)
    )


def _prove_shape(message, spec, max_rows, max_rank):
    if spec.dtype in _FLOATS:
        allowed = _OF_FLOATS.values()
    elif spec.dtype in _OF_INTEGERS:
        allowed = (_OF_INTEGERS[spec.dtype],)
    else:
        allowed = ()
    if message.dtype not in allowed:
        raise _wrong(spec, f"dtype number {message.dtype}")
    rank = len(message.shape)
    if rank > max_rank or rank != len(spec.shape):
        raise _wrong(spec, f"{rank} axes")
    shape = tuple(message.shape)
    if shape[0] > max_rows:
        raise TooLarge(
            f"Expected at most {max_rows} rows of '{spec.name}'. Received: "
            f"{shape[0]}. Send smaller batches."
        )
    wanted = tuple(spec.shape[1:])
    if min(shape) < 1 or (
        shape[1:] != wanted
        and any(
            size not in (None, found)
            for size, found in zip(wanted, shape[1:], strict=True)
        )
    ):
        raise _wrong(spec, f"shape {shape}")
    if None in wanted:
        # Decoding makes at least float32 of it.
        itemsize = max(4, _WIRE[message.dtype].itemsize)
        if math.prod(shape) * itemsize > MAX_OPEN_BYTES:
            raise TooLarge(
                f"Expected at most {MAX_OPEN_BYTES} bytes of '{spec.name}'. "
                f"Received: shape {shape}. Send smaller batches."
            )
    return shape


def _read(message, spec, shape, finite):
    wire = _WIRE[message.dtype]
    is_float = spec.dtype in _FLOATS
    data = _unpack(message, spec, math.prod(shape) * wire.itemsize)
    stored = np.frombuffer(data, wire).reshape(shape)
    if is_float and message.dtype in _EIGHT_BITS:
        return _dequantize(message, spec, stored)
    if message.scale or message.offset:
        raise _wrong(spec, "scales, which only floats in 8 bits have")
    if not is_float:
        return _narrow(stored, spec)
    if message.dtype == split_pb2.BFLOAT16:
        stored = stored.astype(np.uint16, copy=False).view(_BFLOAT16)
    values = _converted(stored, np.float32)
    if finite and not _is_finite_float32(values):
        raise _wrong(spec, "numbers that are not finite")
    return _converted(values, spec.dtype)


def _converted(values, dtype):
    """The values in a type of floats; the same array if they are in it."""
    if values.dtype == dtype:
        return values
    # A NaN that signals makes NumPy warn where it is converted.
    with np.errstate(invalid="ignore"):
        return values.astype(dtype)


def _unpack(message, spec, num_bytes):
    """The bytes of a message, proven to be as many as its shape needs."""
    data = message.data
    if message.compression == split_pb2.NONE:
        if len(data) != num_bytes:
            raise _wrong(spec, f"{len(data)} bytes, not {num_bytes}")
        return data
    if message.compression != split_pb2.ZSTD:
        raise _wrong(spec, f"compression number {message.compression}")
    try:
        # From the header. As a later step allocates what it says, it has to
        # be the size that the shape needs.
        size = zstandard.get_frame_parameters(data).content_size
        if size != num_bytes:
            raise _wrong(spec, f"a frame of {size} bytes, not {num_bytes}")
        data = zstandard.ZstdDecompressor().decompress(
            data, max_output_size=num_bytes, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise _wrong(spec, f"a frame that is damaged ({error})") from error
    if len(data) != num_bytes:
        raise _wrong(spec, f"{len(data)} bytes, not {num_bytes}")
    return data


def _dequantize(message, spec, stored):
    counts = len(message.scale), len(message.offset)
    if counts not in ((1, 1), (stored.shape[-1],) * 2):
        raise _wrong(spec, "{} scales and {} offsets".format(*counts))
    values = affine.dequantize(
        stored,
        np.array(message.scale, np.float32),
        np.array(message.offset, np.float32),
    )
    if values is None:
        raise _wrong(spec, "scales and offsets that cannot be right")
    return values.astype(spec.dtype, copy=False)


def _narrow(stored, spec):
    """Integers in the spec's own type, where the wire's is wider."""
    if stored.dtype.name == spec.dtype:
        return stored.astype(spec.dtype, copy=False)
    low, high = 0, 1
    if spec.dtype != "bool":
        low, high = np.iinfo(spec.dtype).min, np.iinfo(spec.dtype).max
    if stored.min() < low or stored.max() > high:
        raise _wrong(spec, f"values beyond {low} to {high}")
    return stored.astype(spec.dtype)


def _wrong(spec, received):
    return WireError(
        f"Expected '{spec.name}' as {spec.dtype} of shape {spec.shape}, where "
        f"None stands for an open size. Received: {received}. Both sides need "
        "parts of the same model and the same protocol."
    )
