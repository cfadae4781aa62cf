"""What runs the stages of a bundle, for each format.

Each loader takes the bundle's folder, its manifest, the bytes of its files,
a number of threads and one of calls at the same time, and gives a callable for
each stage: a tuple of arrays -> dict of arrays by name, which the caller may
write to.
"""

import os
import threading

import numpy as np

from keras_earlyexit.bundle.litert import LiteRTStage
from keras_earlyexit.bundle.specs import BundleError

#: Formats whose files are parsed from the bytes that were hashed.
FROM_BYTES = ("litert", "onnx")


def load_litert(path, manifest, contents, num_threads, num_calls):
    return [
        LiteRTStage(entry, contents[entry.path], num_threads, num_calls)
        for entry in manifest.stages
    ]


def load_onnx(path, manifest, contents, num_threads, num_calls):
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            "Expected ONNX Runtime to run a bundle of format 'onnx'. "
            "Received: an environment without. Install it: pip install "
            "onnxruntime"
        ) from error
    options = onnxruntime.SessionOptions()
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    return [
        _onnx_stage(
            entry,
            onnxruntime.InferenceSession(
                contents[entry.path], options, ["CPUExecutionProvider"]
            ),
        )
        for entry in manifest.stages
    ]


def _onnx_stage(entry, session):
    inputs = [tensor.name for tensor in session.get_inputs()]
    outputs = [tensor.name for tensor in session.get_outputs()]
    _check_names(entry, inputs, outputs)
    inputs = [f"input_{i}" for i in range(len(inputs))]

    def run(arrays):
        fed = dict(zip(inputs, arrays, strict=True))
        return dict(zip(outputs, session.run(outputs, fed), strict=True))

    return run


def load_saved_model(path, manifest, contents, num_threads, num_calls):
    import tensorflow as tf

    stages = []
    for entry in manifest.stages:
        loaded = tf.saved_model.load(os.path.join(path, entry.path))
        signature = loaded.signatures["serving_default"]
        _, inputs = signature.structured_input_signature
        _check_names(entry, inputs, signature.structured_outputs)
        # A signature does not keep alive what it reads its weights from.
        stages.append(_tensorflow_stage(tf, loaded, signature))
    return stages


def _tensorflow_stage(tf, loaded, signature):
    def run(arrays, loaded=loaded):
        outputs = signature(
            **{f"input_{i}": tf.constant(x) for i, x in enumerate(arrays)}
        )
        return {name: np.array(value) for name, value in outputs.items()}

    return run


def load_keras(path, manifest, contents, num_threads, num_calls):
    import keras

    return [
        _keras_stage(
            entry,
            keras.models.load_model(
                os.path.join(path, entry.path), compile=False, safe_mode=True
            ),
        )
        for entry in manifest.stages
    ]


def _keras_stage(entry, model):
    import keras

    compiled = keras.backend.backend() == "tensorflow"
    run = _compiled(model) if compiled else _filled_up(model)
    wanted = {spec.name for spec in entry.outputs}

    def stage(arrays):
        outputs, rows = run(arrays), len(arrays[0])
        return {
            name: np.array(value[:rows], _plain(value.dtype))
            for name, value in outputs.items()
            if name in wanted
        }

    return stage


def _compiled(model):
    import keras
    import tensorflow as tf

    signature = [
        tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype)
        for tensor in keras.tree.flatten(model.input)
    ]

    def call(*tensors):
        inputs = keras.tree.pack_sequence_as(model.input, tensors)
        return model(inputs, training=False)

    function = tf.function(call, input_signature=signature, autograph=False)
    # Called as it is, a function that is made for each stage is a warning.
    function = function.get_concrete_function()

    def run(arrays):
        tensors = [
            tf.cast(array, spec.dtype)
            for array, spec in zip(arrays, signature, strict=True)
        ]
        return {name: x.numpy() for name, x in function(*tensors).items()}

    return run


def _filled_up(model):
    """Fills batches up to a power of two: each size is compiled anew."""
    import keras

    # Keras' predict is not made for several threads.
    lock = threading.Lock()

    def run(arrays):
        rows = len(arrays[0])
        padding = (1 << (rows - 1).bit_length()) - rows
        arrays = [
            np.concatenate([array, array[:1].repeat(padding, 0)])
            for array in arrays
        ]
        inputs = keras.tree.pack_sequence_as(model.input, arrays)
        with lock:
            return model.predict_on_batch(inputs)

    return run


def _plain(dtype):
    """A type that every NumPy can compute with, at least as exact."""
    return "float32" if dtype.name in ("bfloat16", "float16") else dtype


def _check_names(entry, inputs, outputs):
    wanted_in = {f"input_{i}" for i in range(len(entry.inputs))}
    wanted_out = {spec.name for spec in entry.outputs}
    if set(inputs) != wanted_in or set(outputs) != wanted_out:
        raise BundleError(
            f"Expected '{entry.path}' to take {sorted(wanted_in)} and to "
            f"return {sorted(wanted_out)}. Received: a file that takes "
            f"{sorted(inputs)} and returns {sorted(outputs)}."
        )


LOADERS = {
    "keras": load_keras,
    "litert": load_litert,
    "onnx": load_onnx,
    "saved_model": load_saved_model,
}
