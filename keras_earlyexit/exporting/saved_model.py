"""Stages, and the whole route, as TensorFlow SavedModels."""

import keras

from keras_earlyexit.engines import GraphEngine
from keras_earlyexit.exporting.functions import (
    HALF,
    as_function,
    input_specs,
    widen,
)
from keras_earlyexit.stages import CROSSING


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


def write_routed(model, bounds, path):
    """Writes the graph that routes a batch by itself.

    The signature `serving_default` takes the inputs under their own names and
    returns `predictions`, `exit_index` and `score`, by the thresholds that the
    policy has now; `with_thresholds` takes `thresholds` (E,) besides. In a
    segment that does not end with `final` they also return `staying`, the rows
    that would go on, and what the next segment takes of these: `feature`, and
    `carry` if there is one.

    Args:
        model: An `EarlyExitModel`.
        bounds: First and last stage of the segment.
        path: The folder to write.
    """
    import tensorflow as tf

    first, last = bounds
    specs = input_specs(model, first)
    structure = model.stages[first].input
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
        rows = tf.shape(tensors[0])[0]
        answers, crossing = engine.from_stage(
            model.stages, first, inputs, thresholds, rows, last
        )
        names = ("predictions", "exit_index", "score")
        found = dict(zip(names, answers, strict=True))
        if last < num_early:
            stays = tf.logical_not(found["score"] > thresholds[last])
            stays = tf.logical_and(stays, found["exit_index"] == last)
            found["staying"] = tf.where(stays)[:, 0]
            found.update(zip(CROSSING, map(widen, crossing), strict=False))
        return found

    def serve(*tensors):
        return with_thresholds(*tensors, tf.constant(present))

    signature = [
        tf.TensorSpec(spec.shape, spec.dtype, name=spec.name) for spec in specs
    ]
    thresholds = tf.TensorSpec((num_early,), tf.float32, name="thresholds")
    archive = keras.export.ExportArchive()
    for stage in model.stages[first : last + 1]:
        archive.track(stage)
    archive.add_endpoint("serve", serve, signature)
    archive.add_endpoint(
        "with_thresholds", with_thresholds, [*signature, thresholds]
    )
    archive.write_out(path, verbose=False)
