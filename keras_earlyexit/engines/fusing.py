"""Batch normalisation as one TensorFlow operation, for answering few rows.

Keras writes inference out as half a dozen operations, each of which costs a
batch of one more than its arithmetic.
"""

import dataclasses

import keras
from keras import layers, ops


def fuse(exits):
    """The same network, with each batch normalisation as one operation.

    Args:
        exits: An `exit_graph.ExitGraph`.

    Returns:
        An `ExitGraph` that shares all weights and gives the same answers in
        inference, up to rounding.
    """
    made, calls = {}, []
    for call in exits.graph.calls:
        norm = call.operation
        if _can_fuse(call):
            # Shared layers that are called several times stay shared.
            fused = made.setdefault(norm, FusedNormalization(norm))
            call = dataclasses.replace(call, operation=fused)
        calls.append(call)
    graph = dataclasses.replace(exits.graph, calls=tuple(calls))
    return dataclasses.replace(exits, graph=graph)


class FusedNormalization(layers.Layer):
    """A batch normalisation over images, in inference.

    Args:
        norm: A `BatchNormalization` over the last axis, built.
    """

    def __init__(self, norm):
        super().__init__(name=f"{norm.name}_fused", dtype=norm.dtype_policy)
        self.norm = norm
        self.built = True

    def call(self, feature, training=None, mask=None):
        import tensorflow as tf

        norm = self.norm
        mean = ops.cast(norm.moving_mean, "float32")
        scale, offset = norm.gamma, norm.beta
        return tf.raw_ops.FusedBatchNormV3(
            x=feature,
            scale=ops.ones_like(mean)
            if scale is None
            else ops.cast(scale, "float32"),
            offset=ops.zeros_like(mean)
            if offset is None
            else ops.cast(offset, "float32"),
            mean=mean,
            variance=ops.cast(norm.moving_variance, "float32"),
            epsilon=norm.epsilon,
            is_training=False,
        ).y

    def compute_output_shape(self, shape):
        return shape


def _can_fuse(call):
    norm = call.operation
    # Its subclasses may compute something else.
    return (
        type(norm) is layers.BatchNormalization
        and norm.built
        and len(call.inputs) == 1
        and len(call.inputs[0].shape) == 4
        and norm.axis in (-1, 3)
        and keras.backend.standardize_dtype(norm.compute_dtype)
        in ("float32", "float16", "bfloat16")
    )
