"""Samples side by side in one picture."""

import numpy as np

_LEAST_PIXELS = 48
_FRAME = 3
_RIGHT, _WRONG, _PLAIN = (46, 160, 67), (207, 34, 46), (140, 140, 140)
_PAPER = 255


def is_images(x):
    """Whether samples are images with the channels last."""
    return (
        isinstance(x, np.ndarray)
        and x.ndim == 4
        and x.shape[-1] in (1, 3, 4)
        and x.dtype.kind in "uif"
    )


def as_pixels(images):
    """Images of any scale as pixels.

    Args:
        images: Array (n, height, width, channels); the smallest value of all
            becomes black, the largest white.

    Returns:
        Array (n, height, width, 3), uint8.
    """
    images = np.asarray(images, "float32")[..., :3]
    low, high = images.min(), images.max()
    scaled = (images - low) * (255 / max(high - low, 1e-12))
    return np.broadcast_to(
        np.rint(scaled).astype("uint8"), (*images.shape[:3], 3)
    )


def row(pixels, right=None):
    """A row of samples, in green frames where the answer was right.

    Args:
        pixels: Array (n, height, width, 3), uint8.
        right: Boolean array (n,), or `None` if nobody knows.

    Returns:
        Array (height, width, 3), uint8.
    """
    tiles = []
    for i, tile in enumerate(pixels):
        times = -(-_LEAST_PIXELS // max(tile.shape[:2]))
        tile = tile.repeat(times, axis=0).repeat(times, axis=1)
        height, width, _ = tile.shape
        colour = _PLAIN if right is None else _RIGHT if right[i] else _WRONG
        framed = np.full(
            (height + 4 * _FRAME, width + 4 * _FRAME, 3), _PAPER, "uint8"
        )
        framed[_FRAME:-_FRAME, _FRAME:-_FRAME] = colour
        framed[2 * _FRAME : -2 * _FRAME, 2 * _FRAME : -2 * _FRAME] = tile
        tiles.append(framed)
    return np.concatenate(tiles, axis=1)
