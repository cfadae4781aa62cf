"""Drawings and pictures become what the model was trained on."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from keras_earlyexit.live.images import Images


@pytest.fixture
def images(data):
    return Images(data[0][0])


def drawing(ink="black", paper="white", mode="RGB", at=(40, 200)):
    """A thick stroke, straight down, somewhere on a sheet."""
    picture = Image.new(mode, (320, 320), paper)
    x, y = at
    ImageDraw.Draw(picture).rectangle((x, y, x + 30, y + 90), ink)
    return picture


@pytest.mark.parametrize(
    "picture",
    [
        drawing(),
        drawing("white", "black"),
        drawing("black", (0, 0, 0, 0), "RGBA"),
        drawing("#333333"),
        drawing(at=(250, 10)),
    ],
)
def test_ink_is_bright_in_the_middle_and_as_high_as_can_be(images, picture):
    sample = images.from_drawing(picture)[..., 0]
    assert sample.shape == (8, 8) and sample.dtype == "float32"
    assert sample.max() == 1 and sample.min() == 0
    assert (sample.sum(axis=1) > 1).all(), "from top to bottom"
    # Upright, so that it is not as wide as it is high.
    assert sample[:, :2].sum() == sample[:, -2:].sum() == 0


@pytest.mark.parametrize("paper", ["white", "black", "#777777"])
def test_an_empty_sheet_is_no_sample(images, paper):
    assert images.from_drawing(Image.new("RGB", (320, 320), paper)) is None


def test_pictures_keep_their_brightness_and_lose_their_borders():
    rng = np.random.default_rng(0)
    # Each channel has its own range, as after normalising.
    x = rng.uniform(size=(50, 4, 4, 3)) * [1, 2, 4] - [0, 1, 2]
    x[0], x[1] = x.min(axis=(0, 1, 2)), x.max(axis=(0, 1, 2))
    images = Images(x)
    wide = Image.new("RGB", (90, 30), "black")
    wide.paste("white", (30, 0, 60, 30))
    # Its columns at the sides are blurred with what was cut off.
    middle = images.from_picture(wide)[:, 1:-1]
    np.testing.assert_allclose(middle, x[1][:, 1:-1], rtol=1e-6)


def test_samples_are_shown_as_they_are(images, data):
    sample = data[0][0][0]
    picture = images.to_picture(sample, size=80)
    assert picture.size == (80, 80)
    shown = np.asarray(picture)[5::10, 5::10] / 255
    np.testing.assert_allclose(shown, sample[..., 0], atol=0.003)
