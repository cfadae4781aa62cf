"""What the option `--data` of the commands stands for."""

import importlib
import inspect
import os
import pathlib
import re
import sys
import typing
import zipfile
import zlib

import numpy as np

from keras_earlyexit import slices
from keras_earlyexit._tfds import UnknownSplit

# A data set of TFDS may have a colon too, but a version behind it.
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_HOW = (
    "Give the name of a data set, a folder with a folder of images for each "
    "class, an .npz file with x and y, or module:function."
)
_IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
#: What a file raises that is empty, cut off, damaged, or something else.
_UNREADABLE = (
    *(EOFError, KeyError, OSError, ValueError),
    *(zipfile.BadZipFile, zlib.error),
)
#: What is not divided is one part.
_WHOLE = "train"


class Samples(typing.NamedTuple):
    """Labelled samples, as `load` finds them.

    Attributes:
        x: Inputs; or a data set that brings labels along.
        y: Labels, or `None` where `x` brings them along.
        sample_weight: Weights, or `None`.
        class_names: Names of the classes, or `None` where they have none.
    """

    x: typing.Any
    y: typing.Any = None
    sample_weight: typing.Any = None
    class_names: tuple | None = None


def load(
    data,
    split=None,
    *,
    default_split=_WHOLE,
    input_shape=None,
    image_scale=1.0,
    data_dir=None,
):
    """Samples from where the user says they are.

    - The name of a data set, as `ee.datasets.load` takes it; images are
      normalised as `ee.datasets.normalize` does.
    - A folder with a folder of images for each class. Folders `train`,
      `test`, ... around them are splits. The samples come in a random order,
      the same each time.
    - An `.npz` file with `x`, `y` and maybe `sample_weight`, or with `x_test`,
      `y_test`, ... for each split; as they are.
    - `module:function`: what the function gives, `(x, y)`, `(x, y,
      sample_weight)` or a data set. The module is also looked for in the
      working directory. A function with a parameter gets the split.

    What is not divided is one split `train`. Splits may be sliced.

    Args:
        data: One of these, as text.
        split: The split; `None` takes `default_split` where there is one of
            that name, else everything.
        default_split: A name.
        input_shape: Shape of one input, which images of a folder are brought
            to.
        image_scale: What images of a folder, 0 to 255, are multiplied with.
        data_dir: Folder of the data sets of TFDS, as in `ee.datasets.load`.

    Returns:
        `Samples`.

    Raises:
        ValueError: If it is none of these.
        FileNotFoundError: If a data set cannot be had.
        ImportError: If a package that it needs is missing.

    Example:

    >>> from keras_earlyexit import sources
    >>> x, y, _, _ = sources.load("digits", "test[:50%]")
    >>> x.shape, x.dtype
    ((200, 8, 8, 1), dtype('float32'))
    """
    path = pathlib.Path(data)
    if path.is_dir():
        return _of_folder(path, split, default_split, input_shape, image_scale)
    if path.suffix == ".npz":
        return _of_file(path, split, default_split)
    if is_function(data):
        return _of_function(data, split or default_split)
    import keras_earlyexit as ee

    try:
        x, y = ee.datasets.load(data, split or default_split, data_dir)
    except UnknownSplit:
        raise
    except ValueError as error:
        raise ValueError(f"{error} {_HOW}") from error
    if x.dtype.kind == "u" and x.ndim > 2:
        x = ee.datasets.normalize(data, x)
    return Samples(x, y)


def is_function(text):
    """Whether a text has the form `module:function`."""
    return _FUNCTION.fullmatch(text) is not None


def function(text):
    """The function that `module:function` names.

    Args:
        text: The module may also be in the working directory.

    Raises:
        ValueError: If there is none.
    """
    module, _, name = text.partition(":")
    # Where commands are installed, Python does not look there by itself.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            "Expected a function of a module that can be imported. Received: "
            f"{text!r} ({error}). Look at the names, and at PYTHONPATH or the "
            "working directory."
        ) from error
    if not callable(found):
        raise ValueError(
            f"Expected a function. Received: {text!r}, which is "
            f"{found!r:.60} (of type {type(found).__name__})."
        )
    return found


def _of_function(data, split):
    maker = function(data)
    takes_split = bool(inspect.signature(maker).parameters)
    found = maker(split) if takes_split else maker()
    if isinstance(found, tuple) and len(found) in (2, 3):
        return Samples(*found)
    return Samples(found)


def _of_file(path, split, default_split):
    try:
        # NumPy leaves a file open that it cannot read.
        with (
            open(path, "rb") as file,
            np.load(file, allow_pickle=False) as arrays,
        ):
            parts = {
                name.removeprefix("x_"): f"_{name.removeprefix('x_')}"
                for name in arrays
                if name.startswith("x_")
            } or {_WHOLE: ""}
            sizes = {
                name: len(arrays[f"x{ending}"])
                for name, ending in parts.items()
            }
            ranges = _ranges(path, sizes, split, default_split)
            x, y = (
                np.concatenate(
                    [
                        arrays[kind + parts[name]][first:stop]
                        for name, first, stop in ranges
                    ]
                )
                for kind in "xy"
            )
            weights = [
                arrays[f"sample_weight{parts[name]}"][first:stop]
                for name, first, stop in ranges
                if f"sample_weight{parts[name]}" in arrays
            ]
    except _UNREADABLE as error:
        raise ValueError(
            "Expected an .npz file with arrays x and y, or x_train, y_train, "
            f"... Received: {str(path)!r} ({error})."
        ) from error
    if weights and len(weights) < len(ranges):
        weights = []
    return Samples(x, y, np.concatenate(weights) if weights else None)


def _of_folder(path, split, default_split, input_shape, image_scale):
    parts = _parts(path)
    classes = sorted({name for part in parts.values() for name in part})
    fits = input_shape is not None and len(input_shape) == 3
    if not classes or not fits or None in input_shape:
        raise ValueError(
            "Expected a folder with a folder of images for each class, and a "
            f"model of images of a fixed size. Received: {str(path)!r} with "
            f"{len(classes)} such folders, and inputs of shape {input_shape}. "
            f"{_HOW}"
        )
    files = {}
    for name, part in parts.items():
        files[name] = [
            (file, classes.index(label))
            for label, found in part.items()
            for file in found
        ]
        # By class, a slice would be of a few classes.
        np.random.RandomState(0).shuffle(files[name])
    sizes = {name: len(found) for name, found in files.items()}
    chosen = [
        pair
        for name, first, stop in _ranges(path, sizes, split, default_split)
        for pair in files[name][first:stop]
    ]
    if not chosen:
        raise ValueError(
            f"Expected images. Received: {str(path)!r} without any. {_HOW}"
        )
    images = np.empty((len(chosen), *input_shape), "float32")
    for image, (file, _) in zip(images, chosen, strict=True):
        image[:] = _image(file, input_shape) * np.float32(image_scale)
    labels = np.array([label for _, label in chosen], "int64")
    return Samples(images, labels, None, tuple(classes))


def _parts(path):
    """Dict of the splits; each a dict of the classes' lists of files."""

    def folders(path):
        return sorted(
            entry
            for entry in path.iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        )

    inside = {folder.name: folders(folder) for folder in folders(path)}
    if not any(inside.values()):
        inside = {_WHOLE: folders(path)}
    return {
        name: {
            folder.name: sorted(
                file
                for file in folder.iterdir()
                if file.suffix.lower() in _IMAGES
            )
            for folder in classes
        }
        for name, classes in inside.items()
    }


def _image(file, input_shape):
    import keras

    height, width, channels = input_shape
    mode = {1: "grayscale", 3: "rgb", 4: "rgba"}[channels]
    try:
        image = keras.utils.load_img(
            file, color_mode=mode, target_size=(height, width)
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Expected an image. Received: {str(file)!r} ({error})."
        ) from error
    return keras.utils.img_to_array(image, dtype="float32")


def _ranges(data, sizes, split, default_split):
    """Which rows of which part: a list of `(name, first, stop)`."""
    if split is None:
        split = default_split if default_split in sizes else "+".join(sizes)
    found = slices.ranges(split, sizes)
    if found is None:
        raise ValueError(
            f"Expected a split of {str(data)!r}: {', '.join(sizes)}, or a "
            f"slice of one, such as {next(iter(sizes))}[:90%]. Received: "
            f"{split!r}."
        )
    return found
