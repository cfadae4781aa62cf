"""Writes one stage in any of the formats."""

import keras

from keras_earlyexit.bundle.manifest import FORMATS
from keras_earlyexit.exporting import functions, litert, onnx, saved_model

_SUFFIXES = {"keras": ".keras", "litert": ".tflite", "onnx": ".onnx"}


def check(format, quantize):
    """Refuses a format that cannot be written here.

    Raises:
        ValueError: If the format is unknown, or needs another backend, or if
            `quantize` does not fit it.
    """
    if format not in FORMATS:
        raise ValueError(
            f"Expected `format` to be one of {', '.join(FORMATS)}. Received: "
            f"format={format!r} (of type {type(format).__name__})."
        )
    backend = keras.backend.backend()
    if format != "keras" and backend != "tensorflow":
        raise ValueError(
            f"Expected the TensorFlow backend to write format={format!r}. "
            f"Received: the backend {backend!r}. Save the model with "
            "`model.save('model.keras')`, and load and export it in a process "
            "with KERAS_BACKEND=tensorflow; or choose format='keras'."
        )
    if quantize is None:
        return
    if quantize not in litert.QUANTIZE or format != "litert":
        raise ValueError(
            "Expected `quantize` to be None, or for format='litert' one of "
            f"{', '.join(litert.QUANTIZE)}. Received: quantize={quantize!r} "
            f"with format={format!r}."
        )


def file_name(format, index):
    """Name of a stage's file, or folder, in a bundle."""
    return f"stage_{index}{_SUFFIXES.get(format, '')}"


def write_stage(model, index, format, path, quantize=None, samples=None):
    """Writes one stage.

    Args:
        model: An `EarlyExitModel`.
        index: Which stage.
        format: One of the formats that `check` lets through.
        path: The file, or the folder, to write.
        quantize: As in `litert.convert`.
        samples: As in `litert.convert`.
    """
    stage = model.stages[index]
    specs = functions.input_specs(model, index)
    if format == "keras":
        stage.save(path)
    elif format == "saved_model":
        saved_model.write(stage, specs, path)
    else:
        if format == "litert":
            content = litert.convert(stage, specs, quantize, samples)
        else:
            content = onnx.convert(stage, specs)
        with open(path, "wb") as file:
            file.write(content)
