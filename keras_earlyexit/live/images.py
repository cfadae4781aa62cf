"""Drawings and uploaded pictures as inputs of a model."""

import numpy as np

# Less than this, and paper is only not quite even.
_FAINT = 0.15


class Images:
    """Brings pictures into the form of a data set.

    Args:
        x: Samples (n, height, width, channels) as the model gets them; their
            range is what black and white become.
    """

    def __init__(self, x):
        self.shape = x.shape[1:]
        axes = tuple(range(x.ndim - 1))
        self._low, self._high = x.min(axis=axes), x.max(axis=axes)

    def from_drawing(self, picture):
        """A sample from ink on paper, or `None` if there is no ink.

        The ink is cut out and set into the middle, bright on dark, as high as
        the sample: so are the digits of the usual data sets.

        Args:
            picture: `PIL.Image.Image`.
        """
        from PIL import Image

        gray = _gray(picture)
        # Paper is what is at the edge, white or black.
        edge = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
        ink = np.abs(gray - np.median(edge))
        rows, columns = np.nonzero(ink > max(_FAINT, 0.3 * ink.max()))
        if not len(rows):
            return None
        ink = ink[
            rows.min() : rows.max() + 1, columns.min() : columns.max() + 1
        ]
        height, width = self.shape[:2]
        scale = min(height / ink.shape[0], width / ink.shape[1])
        size = [max(1, round(scale * n)) for n in ink.shape[::-1]]
        small = Image.fromarray(np.round(255 * ink).astype("uint8"))
        small = np.asarray(small.resize(size, Image.Resampling.BOX)) / 255
        whole = np.zeros((height, width))
        top = (height - small.shape[0]) // 2
        left = (width - small.shape[1]) // 2
        whole[top : top + small.shape[0], left : left + small.shape[1]] = small
        # A thin pen leaves grey where thick ones leave white.
        return self._as_sample(whole[..., None] / max(whole.max(), 1e-6))

    def from_picture(self, picture):
        """A sample from a picture, whose middle is taken.

        Args:
            picture: `PIL.Image.Image`.
        """
        from PIL import Image, ImageOps

        channels = self.shape[-1]
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
        fitted = ImageOps.fit(
            picture.convert(mode), self.shape[1::-1], Image.Resampling.LANCZOS
        )
        pixels = np.asarray(fitted, "float64").reshape(self.shape) / 255
        return self._as_sample(pixels)

    def to_picture(self, sample, size=96):
        """A `PIL.Image.Image` of a sample, enlarged without smoothing."""
        from PIL import Image

        span = np.maximum(self._high - self._low, 1e-12)
        pixels = np.clip((sample - self._low) / span, 0, 1)
        pixels = np.round(255 * pixels).astype("uint8")
        if pixels.shape[-1] == 1:
            pixels = pixels[..., 0]
        image = Image.fromarray(pixels)
        factor = max(size // max(image.size), 1)
        new = [factor * n for n in image.size]
        return image.resize(new, Image.Resampling.NEAREST)

    def _as_sample(self, pixels):
        scaled = self._low + pixels * (self._high - self._low)
        return np.broadcast_to(scaled, self.shape).astype("float32")


def _gray(picture):
    """Brightness in [0, 1]; what is transparent is paper."""
    from PIL import Image

    paper = Image.new("RGBA", picture.size, "white")
    paper.alpha_composite(picture.convert("RGBA"))
    return np.asarray(paper.convert("L"), "float64") / 255
