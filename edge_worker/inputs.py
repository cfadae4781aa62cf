"""Samples from files and streams, a batch at a time.

Nothing is unpickled, and what is too large is refused before it is read.
"""

import json
import math
import os
import pathlib
import warnings

import numpy as np

from keras_earlyexit.bundle.specs import BundleError

IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
_MAX_FILE_BYTES = 64 << 20
_MAX_LINE_CHARS = 64 << 20
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class InputError(BundleError):
    """A file or a line that holds no samples for the model."""


class Samples:
    """Samples to answer, batch by batch: iterate for `(ids, x)`.

    Args:
        source: Path of an `.npy` file or of a folder of images, or a stream
            of JSON lines. A line is a sample: numbers in nested lists, an
            object of them by the name of the input, or either as `"input"`
            in an object that may have an `"id"`.
        specs: The `TensorSpec` of every input of the model.
        batch_size: Samples in a batch.
        scale: What the values of images, from 0 to 255, are multiplied with.
    """

    def __init__(self, source, specs, batch_size, scale=1.0):
        self._specs = specs
        self._size = batch_size
        self._scale = scale
        self.total = None
        if hasattr(source, "readline"):
            self._batches = self._from_lines(source)
            return
        path = pathlib.Path(source)
        if not path.exists():
            raise InputError(
                "Expected an .npy file, a folder of images, or - for JSON "
                f"lines. Received: {str(path)!r}, which is not there."
            )
        if len(specs) > 1:
            raise InputError(
                "Expected JSON lines for a model with the inputs "
                f"{[spec.name for spec in specs]}. Received: {str(path)!r}. "
                "Pipe them in, with - as the input."
            )
        read = self._from_folder if path.is_dir() else self._from_array
        self._batches = read(path)

    def __iter__(self):
        return self._batches

    def _from_array(self, path):
        try:
            # Mapped: only what is answered next is in memory.
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        # A header that is damaged makes NumPy raise whatever it may be.
        except Exception as error:
            raise InputError(
                "Expected a file that `numpy.save` has written. Received: "
                f"{str(path)!r} ({error})."
            ) from error
        if not isinstance(array, np.ndarray) or not array.ndim:
            raise InputError(
                "Expected one array of samples. Received: "
                f"{str(path)!r}, which holds something else. Save it with "
                "`numpy.save(path, x)`."
            )
        self.total = len(array)
        return (
            (list(range(i, i + len(part))), part)
            for i in range(0, len(array), self._size)
            for part in (array[i : i + self._size],)
        )

    def _from_folder(self, folder):
        names = sorted(
            entry.name
            for entry in os.scandir(folder)
            if entry.is_file() and entry.name.lower().endswith(IMAGES)
        )
        if not names:
            raise InputError(
                f"Expected images ({', '.join(IMAGES)}). Received: "
                f"{str(folder)!r}, a folder without."
            )
        (spec,) = self._specs
        shape = spec.shape[1:]
        if len(shape) != 3 or None in shape or shape[2] not in _MODES:
            raise InputError(
                "Expected a model whose input is an image of a fixed size. "
                f"Received: one that takes {spec.shape}. Save the samples "
                "with `numpy.save`."
            )
        self.total = len(names)
        return (
            (part, np.stack([self._image(folder / x, spec) for x in part]))
            for i in range(0, len(names), self._size)
            for part in (names[i : i + self._size],)
        )

    def _image(self, path, spec):
        # Only here: it takes time, and most inputs are arrays.
        from PIL import Image

        height, width, channels = spec.shape[1:]
        size = path.stat().st_size
        try:
            if size > _MAX_FILE_BYTES:
                raise ValueError(f"{size} bytes, more than {_MAX_FILE_BYTES}")
            with warnings.catch_warnings():
                # Of images that are larger than anybody's screen.
                warnings.simplefilter("error")
                with Image.open(path) as image:
                    image = image.convert(_MODES[channels])
                    image = image.resize((width, height))
        except (OSError, ValueError, Warning, SyntaxError) as error:
            raise InputError(
                f"Expected an image. Received: {str(path)!r} ({error})."
            ) from error
        except Image.DecompressionBombError as error:
            raise InputError(
                f"Expected an image of a usual size. Received: {str(path)!r} "
                f"({error})."
            ) from error
        pixels = np.asarray(image).reshape(height, width, channels)
        if spec.dtype == "uint8" and self._scale == 1:
            return pixels
        return (pixels * np.float32(self._scale)).astype(spec.dtype)

    def _from_lines(self, stream):
        ids, samples, number = [], [], 0
        # Bounded: a line without an end would fill the memory.
        while line := stream.readline(_MAX_LINE_CHARS):
            number += 1
            if not line.strip():
                continue
            found, sample = self._parse(line, number)
            ids.append(found)
            samples.append(sample)
            if len(ids) == self._size:
                yield ids, self._stack(samples)
                ids, samples = [], []
        if ids:
            yield ids, self._stack(samples)

    def _parse(self, line, number):
        try:
            if len(line) >= _MAX_LINE_CHARS:
                raise ValueError(f"more than {_MAX_LINE_CHARS} characters")
            content = json.loads(line)
            found, sample = number - 1, content
            if isinstance(content, dict) and "input" in content:
                found, sample = content.get("id", found), content["input"]
            if not isinstance(sample, dict):
                if len(self._specs) > 1:
                    raise ValueError("an object with every input is needed")
                sample = {self._specs[0].name: sample}
            return found, tuple(
                as_array(sample[spec.name], spec) for spec in self._specs
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                "Expected a sample as JSON, for the inputs "
                f"{[(x.name, x.shape[1:]) for x in self._specs]}. Received: "
                f"line {number} ({type(error).__name__}: {error})."
            ) from error

    def _stack(self, samples):
        return {
            spec.name: np.stack([sample[i] for sample in samples])
            for i, spec in enumerate(self._specs)
        }


def as_array(values, spec, batched=False):
    """Numbers in nested lists as an array for one input.

    Args:
        values: What JSON had.
        spec: The input's `TensorSpec`.
        batched: Whether the batch is there; else `values` is one sample.

    Returns:
        An array of the spec's type.

    Raises:
        ValueError: If it does not fit.
    """
    array = np.asarray(values)
    if spec.dtype != "string":
        if array.dtype.kind not in "biuf":
            raise ValueError(f"no array of numbers for {spec.name!r}")
        array = array.astype(spec.dtype)
    wanted = spec.shape if batched else spec.shape[1:]
    if len(array.shape) != len(wanted) or any(
        size not in (None, found)
        for size, found in zip(wanted, array.shape, strict=True)
    ):
        raise ValueError(f"shape {array.shape}, not {wanted}")
    return array


def as_answers(result, class_names=None):
    """A list of plain dicts, one for each sample of a `SplitResult`."""
    return [
        {
            "prediction": prediction.tolist(),
            **_class_of(prediction, class_names),
            "exit": int(index),
            "score": None if math.isnan(score) else float(score),
            "answered_by": str(by),
        }
        for prediction, index, score, by in zip(
            result.predictions,
            result.exit_index,
            result.score,
            result.answered_by,
            strict=True,
        )
    ]


def _class_of(prediction, class_names):
    if class_names is None or prediction.shape != (len(class_names),):
        return {}
    return {"class": class_names[int(np.argmax(prediction))]}
