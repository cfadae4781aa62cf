"""Stages, and the whole route, as TensorFlow SavedModels."""

import keras

from keras_earlyexit.engines import GraphEngine
from keras_earlyexit.exporting.functions import HALF, as_function


def write(stage, specs, path):
    """Writes a stage as a SavedModel with the signature `serving_default`.

    Args:
        stage: A stage of a model.
        specs: The `TensorSpec` of what it takes.
        path: The folder to write.
    """
    function = as_function(stage, specs)
    # Traced here, so that the file has the signature of the specs.
    function.get_concrete_function()
    archive = keras.export.ExportArchive()
    archive.track(stage)
    archive.add_endpoint("serve", function)
    archive.write_out(path, verbose=False)


def write_routed(model, specs, path):
    """Writes the graph that routes a batch by itself.

    The signature `serving_default` takes the inputs under their own names and
    returns `predictions`, `exit_index` and `score`, by the thresholds that the
    policy has now; `with_thresholds` takes `thresholds` (E,) besides.

    Args:
        model: An `EarlyExitModel`.
        specs: The `TensorSpec` of its inputs.
        path: The folder to write.
    """
    import tensorflow as tf

    structure = model.stages[0].input
    types = [tensor.dtype for tensor in keras.tree.flatten(structure)]
    num_early = len(model.exit_names) - 1
    present = model.policy.thresholds(num_early)
    engine = GraphEngine(model)

    def with_thresholds(*tensors):
        *tensors, thresholds = tensors
        tensors = [
            tf.cast(tensor, dtype) if dtype in HALF else tensor
            for tensor, dtype in zip(tensors, types, strict=True)
        ]
        inputs = keras.tree.pack_sequence_as(structure, tensors)
        names = ("predictions", "exit_index", "score")
        rows = tf.shape(tensors[0])[0]
        found = engine.from_stage(model.stages, 0, inputs, thresholds, rows)
        return dict(zip(names, found, strict=True))

    def serve(*tensors):
        return with_thresholds(*tensors, tf.constant(present))

    signature = [
        tf.TensorSpec(spec.shape, spec.dtype, name=spec.name) for spec in specs
    ]
    thresholds = tf.TensorSpec((num_early,), tf.float32, name="thresholds")
    archive = keras.export.ExportArchive()
    for stage in model.stages:
        archive.track(stage)
    archive.add_endpoint("serve", serve, signature)
    archive.add_endpoint(
        "with_thresholds", with_thresholds, [*signature, thresholds]
    )
    archive.write_out(path, verbose=False)
