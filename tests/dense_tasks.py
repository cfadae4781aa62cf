"""Models that answer at every position: images pixel by pixel, and text.

The segmentation task is real digits, 0 to 2: each pixel with ink belongs to the
class of its digit, the others to the background. The tagging task is to mark,
in English prose, which characters begin a word and which are inside one.
"""

import keras
import numpy as np
from keras import layers

import keras_earlyexit as ee

BACKGROUND = 3
STEPS = 24


def digit_pixels(split, rows):
    x, digit = ee.datasets.load("digits", split)
    few = np.flatnonzero(digit < BACKGROUND)[:rows]
    x, digit = x[few], digit[few]
    y = np.where(x[..., 0] >= 6, digit[:, None, None], BACKGROUND)
    return ee.datasets.normalize("digits", x), y


def segmenter():
    """An encoder to half the size, a decoder back to the whole of it."""
    image = keras.Input((8, 8, 1), name="image")
    x = image
    for name, filters, strides in (
        ("stem", 8, 1),
        ("down", 12, 2),
        ("middle", 12, 1),
    ):
        x = layers.Conv2D(
            filters, 3, strides, "same", activation="relu", name=name
        )(x)
    x = layers.UpSampling2D(name="up")(x)
    x = layers.Conv2D(8, 1, activation="relu", name="narrow")(x)
    pixels = layers.Conv2D(4, 1, activation="softmax", name="head")(x)
    return keras.Model(image, pixels, name="segmenter")


def letters(split, rows):
    """Pieces of a description that comes with scikit-learn: (rows, STEPS)."""
    from sklearn.datasets import load_diabetes, load_wine

    text = (load_wine if split == "train" else load_diabetes)().DESCR
    codes = np.array([min(ord(letter), 127) for letter in text], "int32")
    inside = np.array([letter.isalnum() for letter in text], "int64")
    follows = np.append(0, inside[:-1])
    # 0: no part of a word, 1: begins one, 2: inside one.
    tags = inside * (1 + follows)
    starts = np.linspace(0, len(text) - STEPS, rows).astype(int)
    at = starts[:, None] + np.arange(STEPS)
    return codes[at], tags[at]


def tagger():
    """Two transformer blocks; the second one's input is a legal cut."""
    tokens = keras.Input((STEPS,), dtype="int32", name="tokens")
    x = layers.Embedding(128, 12, name="embedding")(tokens)
    x = layers.Conv1D(12, 3, padding="same", name="neighbours")(x)
    for i in range(2):
        y = layers.LayerNormalization(name=f"block{i}_norm")(x)
        y = layers.MultiHeadAttention(2, 6, name=f"block{i}_attention")(y, y)
        x = layers.Add(name=f"block{i}_add")([x, y])
        y = layers.Dense(24, activation="gelu", name=f"block{i}_wide")(x)
        y = layers.Dense(12, name=f"block{i}_narrow")(y)
        x = layers.Add(name=f"block{i}_out")([x, y])
    tags = layers.Dense(3, activation="softmax", name="head")(x)
    return keras.Model(tokens, tags, name="tagger")


TASKS = {
    "segmenter": (segmenter, digit_pixels, ["stem", "middle"]),
    "tagger": (tagger, letters, ["neighbours", "block0_out"]),
}
