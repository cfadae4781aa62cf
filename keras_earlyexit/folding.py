"""Batch normalisation folded into the layer before it, for answering.

In inference gamma (W x + b - mean) / sqrt(variance + epsilon) + beta is one
layer W' x + b' of the same kind. W' and b' are computed from the weights at
every call: a copy would go stale when these change, and scaling a kernel costs
less than a pass over the feature.
"""

import dataclasses

import keras
from keras import layers, ops

_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)


def fold(exits):
    """The same network, with fewer operations.

    Args:
        exits: An `exit_graph.ExitGraph`.

    Returns:
        An `ExitGraph` that shares all weights and gives the same answers in
        inference, up to rounding.
    """
    graph = exits.graph
    kept = {id(tensor) for tensor in keras.tree.flatten(graph.outputs)}
    kept |= {id(tensor) for tensor in exits.features}
    kept |= {
        id(tensor)
        for head in exits.heads
        for tensor in head
        if tensor is not None
    }
    producers, readers = {}, {}
    for call in graph.calls:
        for tensor in call.outputs:
            producers[id(tensor)] = call
        for tensor in call.inputs:
            readers[id(tensor)] = readers.get(id(tensor), 0) + 1
    calls, gone, made = [], set(), {}
    for call in graph.calls:
        before = None
        if isinstance(call.operation, layers.BatchNormalization):
            (tensor, *others) = call.inputs
            before = producers.get(id(tensor))
            alone = readers[id(tensor)] == 1 and id(tensor) not in kept
            if others or not alone or not _can_fold(before, call.operation):
                before = None
        if before is None:
            calls.append(call)
            continue
        gone.add(before)
        # Shared layers that are called several times stay shared.
        pair = before.operation, call.operation
        if pair not in made:
            made[pair] = Folded(*pair)
        calls.append(
            dataclasses.replace(
                before, operation=made[pair], outputs=call.outputs
            )
        )
    calls = tuple(call for call in calls if call not in gone)
    graph = dataclasses.replace(graph, calls=calls)
    return dataclasses.replace(exits, graph=graph)


class Folded(layers.Layer):
    """A linear layer and the batch normalisation behind it, as one layer.

    Args:
        linear: A convolution or dense layer without activation, built.
        norm: A `BatchNormalization`, built.
    """

    def __init__(self, linear, norm):
        super().__init__(
            name=f"{linear.name}_{norm.name}", dtype=linear.dtype_policy
        )
        self.linear = linear
        self.norm = norm
        self.built = True

    def call(self, feature):
        linear, norm = self.linear, self.norm
        variance = ops.cast(norm.moving_variance, "float32")
        scale = ops.rsqrt(variance + norm.epsilon)
        if norm.gamma is not None:
            scale = scale * ops.cast(norm.gamma, "float32")
        bias = -ops.cast(norm.moving_mean, "float32")
        if linear.bias is not None:
            bias = bias + ops.cast(linear.bias, "float32")
        bias = bias * scale
        if norm.beta is not None:
            bias = bias + ops.cast(norm.beta, "float32")
        kernel = ops.cast(linear.kernel, "float32")
        if isinstance(linear, _DEPTHWISE):
            scale = ops.reshape(scale, kernel.shape[-2:])
        kernel = ops.cast(kernel * scale, self.compute_dtype)
        bias = ops.cast(bias, self.compute_dtype)
        return _apply(linear, feature, kernel) + bias

    def compute_output_shape(self, shape):
        return self.linear.compute_output_shape(shape)


def _apply(linear, feature, kernel):
    if isinstance(linear, layers.Dense):
        return ops.matmul(feature, kernel)
    convolve, strides = ops.conv, list(linear.strides)
    if isinstance(linear, _DEPTHWISE):
        convolve, strides = ops.depthwise_conv, tuple(strides)
    return convolve(
        feature,
        kernel,
        strides=strides,
        padding=linear.padding,
        dilation_rate=linear.dilation_rate,
        data_format=linear.data_format,
    )


def _can_fold(call, norm):
    """Whether a call is of a linear layer that a normalisation folds into."""
    if call is None or len(call.inputs) != 1:
        return False
    layer = call.operation
    # Their subclasses may compute something else.
    if type(layer) not in (*_CONVOLUTIONS, *_DEPTHWISE, layers.Dense):
        return False
    last = len(call.outputs[0].shape) - 1
    return (
        layer.activation is keras.activations.linear
        and getattr(layer, "padding", None) != "causal"
        and getattr(layer, "data_format", "channels_last") == "channels_last"
        and norm.axis in (-1, last)
        and layer.built
        and norm.built
        and getattr(layer, "quantization_mode", None) is None
    )
