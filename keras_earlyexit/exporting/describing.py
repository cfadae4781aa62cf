"""The manifest of a model's segment."""

import importlib.metadata
import platform

import keras

from keras_earlyexit import call_graph, snapshots
from keras_earlyexit.bundle.manifest import Manifest, StageEntry
from keras_earlyexit.exporting import formats, functions

# What their weights do can be undone, or seen through.
_TRANSPARENT = (
    keras.layers.BatchNormalization,
    keras.layers.Embedding,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.Normalization,
    keras.layers.PReLU,
)
_PACKAGES = {
    "litert": ("tensorflow",),
    "onnx": ("tensorflow", "tf2onnx", "onnx"),
    "saved_model": ("tensorflow",),
    "keras": (),
}


def describe(model, format, bounds, segment, **others):
    """Describes a segment of a model.

    Args:
        model: An `EarlyExitModel`.
        format: Format of the stages.
        bounds: First and last stage of every segment.
        segment: Which segment.
        **others: What `Manifest` has besides.

    Returns:
        A `Manifest`.
    """
    first, last = bounds[segment]
    num_early = len(model.exit_names) - 1
    return Manifest(
        format=format,
        model_name=model.name,
        weights_sha256=snapshots.weights_sha256(model.net.weights),
        exit_names=model.exit_names,
        relative_costs=tuple(map(float, model.relative_costs)),
        thresholds=tuple(map(float, model.policy.thresholds(num_early))),
        policy=_policy(model.policy),
        head=model.head.get_config(),
        segment_index=segment,
        segment_count=len(bounds),
        input_structure=functions.input_structure(model, first),
        stages=tuple(
            StageEntry(
                index=index,
                path=formats.file_name(format, index),
                inputs=functions.input_specs(model, index),
                outputs=functions.output_specs(model, index),
            )
            for index in range(first, last + 1)
        ),
        versions=_versions(format),
        raw_cut=_is_raw(model, last),
        **others,
    )


def _is_raw(model, last):
    """Whether what a stage hands on is no more than the input reshaped."""
    exits = model.exit_graph
    if last == len(exits.features):
        return False
    calls = call_graph.ancestors(exits.graph, [exits.features[last]])
    return not any(
        getattr(call.operation, "weights", None)
        and not isinstance(call.operation, _TRANSPARENT)
        for call in calls
    )


def _policy(policy):
    config = keras.saving.serialize_keras_object(policy)["config"]
    # They stand in the manifest once, one for each exit.
    config.pop("threshold", None)
    return {"name": policy.name, "config": config}


def _versions(format):
    packages = ("keras-earlyexit", "keras", *_PACKAGES[format])
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **versions}
