"""Floats in 8 bits, or fewer: value = offset + scale * stored."""

import math

import numpy as np

_MAX = float(np.finfo(np.float32).max)
_TINY = float(np.finfo(np.float32).tiny)
# Below it, nothing that is computed in float32 can overflow.
_SAFE = _MAX / 4
# Scale and offset are rounded, so the end of the range may be a bit outside.
_ROUNDED_MAX = _MAX * (1 + 1e-6)
# Numbers at a time: so many stay in a core's own cache from step to step.
_BLOCK = 1 << 16


def quantize(array, dtype, per_channel, rng=None, bits=8):
    """Stores an array in 8 bits over the range of its values.

    Args:
        array: float32, finite and not empty, with at least one axis.
        dtype: `"uint8"` or `"int8"`.
        per_channel: Whether every entry of the last axis has a range of its
            own. Where that would be larger than the numbers themselves, the
            tensor has one range.
        rng: NumPy `Generator` for stochastic rounding, whose mean over many
            calls is the value itself; rounds half to even if `None`.
        bits: How many of the 8 are used.

    Returns:
        The stored array, and float32 arrays of scales and of offsets, one
        or one for each entry of the last axis.
    """
    low_end = int(np.iinfo(dtype).min)
    high_end = low_end + 2**bits - 1
    axes = None
    if per_channel and array.ndim > 1 and 8 * array.shape[-1] <= array.size:
        axes = tuple(range(array.ndim - 1))
    low = np.atleast_1d(array.min(axis=axes)).astype(np.float64)
    high = np.atleast_1d(array.max(axis=axes)).astype(np.float64)
    scale = ((high - low) / (high_end - low_end)).astype(np.float32)
    is_flat = scale < _TINY
    scale[is_flat] = 1
    offset = np.where(is_flat, low, low - scale * np.float64(low_end))
    offset = offset.astype(np.float32)
    is_wide = max(-low.min(), high.max()) > _SAFE
    stored = np.empty(array.shape, dtype)
    rows = max(1, _BLOCK * len(array) // array.size)
    for start in range(0, len(array), rows):
        block = slice(start, start + rows)
        work = np.subtract(
            array[block], offset, dtype=np.float64 if is_wide else None
        )
        work /= scale
        if rng is None:
            np.rint(work, out=work)
        else:
            work += _fractions(rng, work.shape)
            np.floor(work, out=work)
        stored[block] = np.clip(work, low_end, high_end, out=work)
    return stored, scale, offset


def dequantize(stored, scale, offset):
    """The values that `quantize` stored.

    Args:
        stored: uint8 or int8 array.
        scale: float32 array of shape (1,) or (size of the last axis,).
        offset: The same.

    Returns:
        A float32 array, or `None` where scale and offset cannot be right:
        not finite, not positive, or a range that float32 does not have.
    """
    if not (np.isfinite(scale).all() and np.isfinite(offset).all()):
        return None
    if not (scale > 0).all():
        return None
    limits = np.iinfo(stored.dtype)
    peak = _peak(limits.min, limits.max, scale, offset)
    if peak > _SAFE and stored.size:
        # Fewer bits may be used than there are.
        peak = _peak(stored.min(), stored.max(), scale, offset)
    if peak > _ROUNDED_MAX:
        return None
    if peak > _SAFE:
        values = offset + scale.astype(np.float64) * stored
        return np.clip(values, -_MAX, _MAX).astype(np.float32)
    values = stored.astype(np.float32)
    values *= scale
    values += offset
    return values


def _fractions(rng, shape):
    """Float32 numbers in [0, 1) at random, four of each draw of 64 bits.

    They are multiples of 2^-16, as fine as float32 tells numbers near 255
    apart: what is a whole number stays that number.
    """
    size = math.prod(shape)
    words = rng.integers(1 << 64, size=-(-size // 4), dtype=np.uint64)
    parts = words.astype("<u8", copy=False).view("<u2")[:size]
    return np.multiply(
        parts.reshape(shape), np.float32(2**-16), dtype=np.float32
    )


def _peak(lowest, highest, scale, offset):
    """The largest magnitude that numbers between these can stand for."""
    return np.abs(offset + np.float64([[lowest], [highest]]) * scale).max()
