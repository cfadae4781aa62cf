"""Stages as LiteRT files, in float32 or quantised."""

import re
import warnings

from keras_earlyexit import call_graph, surgery
from keras_earlyexit.exporting.functions import (
    HALF,
    as_function,
    plain_layers,
    trace,
)

QUANTIZE = ("int8", "float16", "dynamic")


def convert(stage, specs, quantize=None, samples=None):
    """Converts a stage.

    Args:
        stage: A stage of a model.
        specs: The `TensorSpec` of what it takes.
        quantize: `None`, or one of `QUANTIZE`: `"int8"` computes in integers
            where LiteRT can, `"float16"` stores weights in half precision,
            `"dynamic"` stores those of large layers as int8. What goes in and
            comes out stays as it is.
        samples: For `"int8"`: a list of arrays, what the stage is given for
            some samples, to choose the ranges of all values from.

    Returns:
        The bytes of a LiteRT file with one signature.

    Raises:
        ValueError: If LiteRT has no operation for something in the stage.
    """
    import tensorflow as tf

    function = as_function(stage, specs, plain=True)
    try:
        return _convert(tf, function, quantize, samples)
    except Exception as error:
        if not _is_refusal(error):
            raise
        raise ValueError(
            f"Expected layers that LiteRT has operations for. Received: "
            f"'{stage.name}' with {_what_is_refused(tf, stage)} (LiteRT has "
            f"no {_operations(error)}). Export in another format, such as "
            "'saved_model', or make the layer of other operations."
        ) from error


def _convert(tf, function, quantize=None, samples=None):
    concrete = function.get_concrete_function()
    # What the converter finds here it stores in the file as constants.
    holder = tf.Module()
    holder.held = list(concrete.variables)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [concrete], holder
    )
    if quantize is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize == "int8":
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
            # Scores and the like have no integer version.
            tf.lite.OpsSet.TFLITE_BUILTINS,
        ]
        converter.representative_dataset = lambda: (
            {f"input_{k}": array[i : i + 1] for k, array in enumerate(samples)}
            for i in range(len(samples[0]))
        )
    with warnings.catch_warnings():
        # Choosing ranges, the converter runs its own LiteRT.
        warnings.filterwarnings(
            "ignore", message=r"\s*Warning: tf.lite.Interpreter"
        )
        return converter.convert()


def _is_refusal(error):
    # TensorFlow has no public name for it.
    return type(error).__name__ == "ConverterError"


def _operations(error):
    names = sorted(set(re.findall(r"'tf\.(\w+)' op", str(error))))
    return ", ".join(names) or "way to convert it"


def _what_is_refused(tf, stage):
    """Names the layers of a stage that cannot be converted even alone."""
    graph = trace(stage)
    refused = []
    for call in graph.calls:
        specs = [
            tf.TensorSpec((None, *x.shape[1:]), _plain(x), name=f"input_{i}")
            for i, x in enumerate(call.inputs)
        ]

        def alone(*tensors, call=call):
            given = call_graph.pairs(call.inputs, tensors)
            found = surgery.rerun(graph, given, call.outputs)
            return {f"output_{i}": tensor for i, tensor in enumerate(found)}

        try:
            with plain_layers(stage):
                _convert(tf, tf.function(alone, specs, autograph=False))
        except Exception as error:
            if not _is_refusal(error):
                raise
            kind = type(call.operation).__name__
            refused.append(f"'{call.name}' (of type {kind})")
    return ", ".join(refused) or "layers that it cannot convert together"


def _plain(tensor):
    return "float32" if tensor.dtype in HALF else tensor.dtype
