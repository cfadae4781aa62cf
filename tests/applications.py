"""The architectures of keras.applications, built small and without weights."""

import functools

import keras
import numpy as np

# Smallest image that each takes.
IMAGE_SIZES = {
    "ResNet50": 32,
    "MobileNetV2": 32,
    "EfficientNetB0": 32,
    "DenseNet121": 32,
    "VGG16": 32,
    "NASNetMobile": 32,
    "ConvNeXtTiny": 32,
    "Xception": 71,
    "InceptionV3": 75,
}


@functools.cache
def build(name):
    """An architecture with 10 classes, for tests that do not change it."""
    size = IMAGE_SIZES[name]
    return getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=10
    )


def images(name, rows):
    """Random images of the size that an architecture is built for."""
    size = IMAGE_SIZES[name]
    x = np.random.default_rng(0).uniform(0, 255, (rows, size, size, 3))
    return x.astype("float32")
