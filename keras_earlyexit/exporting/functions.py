"""Stages as functions of a flat list of tensors, in types that files have.

Whatever a stage computes in, what crosses between stages is float32 in a
bundle: a half precision number is one too, so that nothing is lost.
"""

import contextlib
import warnings

import keras

from keras_earlyexit import surgery
from keras_earlyexit.bundle.specs import DTYPES, TensorSpec

HALF = ("bfloat16", "float16")
_LEFT_OUT = ("confidence",)


def input_specs(model, index):
    """The `TensorSpec` of what a stage takes, in order."""
    structure = model.stages[index].input
    names = None
    if index == 0 and isinstance(structure, dict):
        names = sorted(structure)
    tensors = keras.tree.flatten(structure)
    return tuple(
        _spec(name or tensor.name, tensor)
        for name, tensor in zip(
            names or [None] * len(tensors), tensors, strict=True
        )
    )


def output_specs(model, index):
    """The `TensorSpec` of what a stage returns in a bundle, by name."""
    outputs = model.stages[index].output
    return tuple(
        _spec(name, outputs[name])
        for name in sorted(outputs)
        if name not in _LEFT_OUT
    )


def input_structure(model, index):
    """In what form a segment that begins with a stage takes its inputs."""
    structure = model.stages[index].input
    if isinstance(structure, dict):
        return "dict"
    several = isinstance(structure, (list, tuple)) and len(structure) > 1
    if index:
        return "dict" if several else "tensor"
    return "list" if several else "tensor"


def _spec(name, tensor):
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    dtype = "float32" if dtype in HALF else dtype
    if dtype not in DTYPES:
        raise ValueError(
            f"Expected tensors of a type in {', '.join(DTYPES)}. Received: "
            f"{name!r} of dtype {dtype}."
        )
    return TensorSpec(name, (None, *tensor.shape[1:]), dtype)


def as_function(stage, specs, plain=False):
    """A stage as a `tf.function` of `input_0`, `input_1`, ...

    Args:
        stage: A stage of a model.
        specs: Its `input_specs`.
        plain: Whether half precision becomes float32, and recurrent layers
            are unrolled, for formats that have neither.

    Returns:
        A `tf.function` with a signature; it returns a dict of tensors.
    """
    import tensorflow as tf

    signature = [
        tf.TensorSpec(spec.shape, spec.dtype, name=f"input_{i}")
        for i, spec in enumerate(specs)
    ]
    run = _call_by_call if plain else _as_a_whole

    def function(*tensors):
        outputs = run(stage, tensors)
        return {
            name: widen(tensor)
            for name, tensor in outputs.items()
            if name not in _LEFT_OUT
        }

    return tf.function(function, input_signature=signature, autograph=False)


def _as_a_whole(stage, tensors):
    tensors = [
        keras.ops.cast(tensor, wanted.dtype) if wanted.dtype in HALF else tensor
        for tensor, wanted in zip(
            tensors, keras.tree.flatten(stage.input), strict=True
        )
    ]
    inputs = keras.tree.pack_sequence_as(stage.input, tensors)
    return stage(inputs, training=False)


def _call_by_call(stage, tensors):
    """Runs a stage without the types that stand in its inputs."""
    graph = trace(stage)
    given = {
        id(expected): tensor
        for expected, tensor in zip(
            keras.tree.flatten(graph.inputs), tensors, strict=True
        )
    }
    wanted = {k: v for k, v in graph.outputs.items() if k not in _LEFT_OUT}
    with plain_layers(stage):
        found = surgery.rerun(graph, given, list(wanted.values()))
    return dict(zip(wanted, found, strict=True))


def trace(stage):
    """The `call_graph.CallGraph` of a stage."""
    with warnings.catch_warnings():
        # That a nested model stays closed is said where exits are added.
        warnings.filterwarnings("ignore", message="Nested models")
        return surgery.trace(stage)


@contextlib.contextmanager
def plain_layers(stage):
    """Lets layers compute in float32 and unroll their steps for a while."""
    import tensorflow as tf

    before = []
    try:
        for layer in tf.train.TrackableView(stage).descendants():
            if not isinstance(layer, keras.Layer):
                continue
            if layer.compute_dtype in HALF:
                before.append((layer, "dtype_policy", layer.dtype_policy))
                layer.dtype_policy = "float32"
            if isinstance(layer, keras.layers.RNN) and not layer.unroll:
                before.append((layer, "unroll", layer.unroll))
                layer.unroll = True
        yield
    finally:
        for layer, name, value in before:
            setattr(layer, name, value)


def widen(tensor):
    """A TensorFlow tensor as float32, if it is of half precision."""
    half = tensor.dtype.name in HALF
    return keras.ops.cast(tensor, "float32") if half else tensor
