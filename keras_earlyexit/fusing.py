"""Batch normalisation as one TensorFlow operation.

Keras writes it out as many. In inference each of the half dozen costs a batch
of one more than its arithmetic; in training they pass over the feature again
and again, where one operation has the statistics, the answers and the
gradients from fewer passes.
"""

import dataclasses
import warnings

import keras
from keras import layers, ops

from keras_earlyexit import surgery


def fuse(exits):
    """The same network, with each batch normalisation as one operation.

    Args:
        exits: An `exit_graph.ExitGraph`.

    Returns:
        An `ExitGraph` that shares all weights and computes the same, up to
        rounding. On other backends than TensorFlow it is `exits` itself.
    """
    return dataclasses.replace(exits, graph=_fused(exits.graph))


def fused_network(net):
    """The same network for training, where the backend is TensorFlow.

    Args:
        net: A functional Keras model.

    Returns:
        A functional Keras model that shares all weights, learns the same up to
        rounding, and keeps the same moving statistics; `net` itself if there is
        nothing to fuse.
    """
    with warnings.catch_warnings():
        # That a nested model stays closed is said where exits are added.
        warnings.filterwarnings("ignore", message="Nested models")
        graph = surgery.trace(net)
    fused = _fused(graph)
    if fused is graph:
        return net
    inputs = keras.tree.flatten(graph.inputs)
    outputs = surgery.rerun(
        fused,
        {id(tensor): tensor for tensor in inputs},
        keras.tree.flatten(graph.outputs),
    )
    return keras.Model(
        graph.inputs,
        keras.tree.pack_sequence_as(graph.outputs, outputs),
        name=net.name,
    )


class FusedNormalization(layers.Layer):
    """A batch normalisation over images, as it is, but in one operation.

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
        learns = bool(training) and norm.trainable
        if mask is not None or training and not learns:
            return norm(feature, training=training, mask=mask)
        mean = ops.cast(norm.moving_mean, "float32")
        variance = ops.cast(norm.moving_variance, "float32")
        found = tf.raw_ops.FusedBatchNormV3(
            x=feature,
            scale=ops.ones_like(mean)
            if norm.gamma is None
            else ops.cast(norm.gamma, "float32"),
            offset=ops.zeros_like(mean)
            if norm.beta is None
            else ops.cast(norm.beta, "float32"),
            mean=mean,
            variance=variance,
            epsilon=norm.epsilon,
            # Of the batch alone: Keras keeps what moves in float32.
            exponential_avg_factor=1.0,
            is_training=learns,
        )
        if learns:
            shape = tf.shape(feature)
            count = tf.cast(tf.reduce_prod(shape[:-1]), "float32")
            # The operation's variance is the unbiased one, Keras' is not.
            biased = found.batch_variance * (1.0 - 1.0 / count)
            _move(norm.moving_mean, mean, found.batch_mean, norm.momentum)
            _move(norm.moving_variance, variance, biased, norm.momentum)
        return found.y

    def compute_output_shape(self, shape):
        return shape


def _move(variable, before, now, momentum):
    variable.assign(before * momentum + now * (1.0 - momentum))


def _fused(graph):
    """A `CallGraph` with fused calls; the same one if there are none."""
    if keras.backend.backend() != "tensorflow":
        return graph
    made, calls = {}, []
    for call in graph.calls:
        norm = call.operation
        if _can_fuse(call):
            # Shared layers that are called several times stay shared.
            fused = made.setdefault(norm, FusedNormalization(norm))
            call = dataclasses.replace(call, operation=fused)
        calls.append(call)
    return dataclasses.replace(graph, calls=tuple(calls)) if made else graph


def _can_fuse(call):
    norm = call.operation
    # Its subclasses may compute something else.
    return (
        type(norm) is layers.BatchNormalization
        and norm.built
        and not norm.renorm
        and not norm.synchronized
        and norm.activity_regularizer is None
        and len(call.inputs) == 1
        and len(call.inputs[0].shape) == 4
        and norm.axis in (-1, 3)
        and keras.backend.standardize_dtype(norm.compute_dtype)
        in ("float32", "float16", "bfloat16")
    )
