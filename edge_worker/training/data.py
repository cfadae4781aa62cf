"""What the option `--data` stands for."""

import importlib
import os
import pathlib

import numpy as np

_PYTHON = "python:"
_HOW = (
    "Give the name of a data set, a folder with a folder of images for each "
    "class, an .npz file with x and y, or python:module:function."
)


def load(data, split="train", input_shape=None, image_scale=1.0):
    """Inputs and labels to train on.

    Args:
        data: Name of a data set, as `ee.datasets.load` takes it; path of a
            folder of images, or of an `.npz` file with `x`, `y` and maybe
            `sample_weight`; or `"python:module:function"`, whose result is
            taken.
        split: Split of a data set by name.
        input_shape: Shape of one input, which images are brought to.
        image_scale: What images of a folder are multiplied by.

    Returns:
        `(x, y, sample_weight)`: `y` is `None` where `x` brings labels along,
        as in `EdgeTrainer.fit`, and `sample_weight` where there are none.

    Raises:
        ValueError: If it is none of these.
    """
    if data.startswith(_PYTHON):
        return _of_function(data)
    path = pathlib.Path(data)
    if path.is_dir():
        return _of_folder(path, input_shape, image_scale)
    if path.suffix == ".npz":
        return _of_file(path)
    import keras_earlyexit as ee

    x, y = ee.datasets.load(data, split)
    return ee.datasets.normalize(data, x), y, None


def _of_function(data):
    module, colon, name = data.removeprefix(_PYTHON).rpartition(":")
    if not colon:
        raise ValueError(f"Expected training data. Received: {data!r}. {_HOW}")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"Expected a function of a module that can be imported. Received: "
            f"{data!r} ({error}). {_HOW}"
        ) from error
    found = function()
    if isinstance(found, tuple) and len(found) in (2, 3):
        x, y, *weight = found
        return x, y, weight[0] if weight else None
    return found, None, None


def _of_file(path):
    try:
        with np.load(path, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays["y"]
            return x, y, arrays.get("sample_weight")
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"Expected an .npz file with arrays x and y. Received: "
            f"{str(path)!r} ({error}). {_HOW}"
        ) from error


def _of_folder(path, input_shape, image_scale):
    import keras

    classes = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    if not classes or input_shape is None or len(input_shape) != 3:
        raise ValueError(
            "Expected a folder with a folder of images for each class, and a "
            f"model of images. Received: {str(path)!r} with {len(classes)} "
            f"folders, and inputs of shape {input_shape}. {_HOW}"
        )
    height, width, channels = input_shape
    mode = {1: "grayscale", 3: "rgb", 4: "rgba"}[channels]
    images, labels = [], []
    for label, name in enumerate(classes):
        for file in sorted(os.listdir(path / name)):
            image = keras.utils.load_img(
                path / name / file,
                color_mode=mode,
                target_size=(height, width),
            )
            images.append(keras.utils.img_to_array(image, dtype="float32"))
            labels.append(label)
    if not images:
        raise ValueError(
            f"Expected images. Received: {str(path)!r} without any. {_HOW}"
        )
    return np.stack(images) * image_scale, np.array(labels), None
