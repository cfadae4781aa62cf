"""What one call of a layer or operation costs, layer kind by layer kind.

`formula(operation)` finds the formula of an operation: a function from a call
to a `collections.Counter` of work at the call's shapes, by kind of work:

| key | what is counted |
|---|---|
| `macs` | multiply-adds with weights: convolutions, dense layers |
| `attention` | multiply-adds of two activations |
| `conv_bias`, `batch_norm`, `relu` | output elements written |
| `pooled` | input elements read by pooling |
| `other` | output elements written by anything else, and input elements read \
by reductions such as a sum |

Why the kinds are kept apart: the conventions in `cost.py` weigh them
differently. Shapes decide everything, so strides, padding, dilation and data
format need no formula of their own: they are in the output's shape.

A layer is matched by its class, and a subclass by its ancestor's formula as
long as it does not override `call`. Layers without a formula are built from
others; `opening.py` takes them apart.
"""

import collections
import inspect
import math

import keras
import numpy as np
from keras import layers

from keras_earlyexit import surgery

Work = collections.Counter


def formula(operation):
    """Finds the formula of an operation, or `None` where there is none."""
    if not isinstance(operation, keras.Layer):
        return _operation_formula(type(operation))
    for ancestor in type(operation).__mro__:
        if ancestor in LAYERS:
            unchanged = type(operation).call is ancestor.call
            return LAYERS[ancestor] if unchanged else None
    return None


def elements(shape):
    """Counts the elements of a shape, a free batch axis counting as one."""
    if shape and shape[0] is None:
        shape = (1, *shape[1:])
    return math.prod(shape)


def argument(call, name):
    """The argument of a call by the name that `operation.call` gives it."""
    signature = inspect.signature(call.operation.call)
    return signature.bind(*call.args, **call.kwargs).arguments.get(name)


# Layers


def _convolution(call):
    layer, written = call.operation, _written_by(call)
    taps = math.prod(layer.kernel.shape[:-1])
    return Work(macs=written * taps) + _finish(layer, written, "conv_bias")


def _depthwise(call):
    layer, written = call.operation, _written_by(call)
    taps = math.prod(layer.kernel_size)
    return Work(macs=written * taps) + _finish(layer, written, "conv_bias")


def _separable(call):
    layer, written = call.operation, _written_by(call)
    between, filters = layer.pointwise_kernel.shape[-2:]
    taps = math.prod(layer.kernel_size)
    macs = written // filters * between * (taps + filters)
    return Work(macs=macs) + _finish(layer, written, "conv_bias")


def _transposed(call):
    # Each input element is multiplied with the whole kernel.
    layer, read = call.operation, elements(call.inputs[0].shape)
    macs = read * math.prod(layer.kernel_size) * layer.filters
    return Work(macs=macs) + _finish(layer, _written_by(call), "conv_bias")


def _dense(call):
    layer, written = call.operation, _written_by(call)
    macs = written * call.inputs[0].shape[-1]
    return Work(macs=macs) + _finish(layer, written, "other")


def _einsum_dense(call):
    layer = call.operation
    shapes = [call.inputs[0].shape, layer.kernel.shape]
    macs = _einsum_macs(layer.equation, shapes)
    return Work(macs=macs) + _finish(layer, _written_by(call), "other")


def _additive_attention(call):
    query, value = argument(call, "inputs")[:2]
    scores = elements(query.shape[:-1]) * value.shape[-2]
    dim = query.shape[-1]
    macs = scores * (dim * call.operation.use_scale + value.shape[-1])
    return Work(attention=macs, other=scores * (2 * dim + 1))


def _activation_layer(call):
    return _activated(call.operation.activation, _written_by(call))


def _merge(call):
    return Work(other=_written_by(call) * (len(call.inputs) - 1))


def _up_sampling(call):
    return _free(call) if _is_nearest(call.operation) else _written(call)


def _is_nearest(layer):
    return getattr(layer, "interpolation", "nearest") == "nearest"


def _finish(layer, written, bias_kind):
    """The work of a layer's bias and activation on what it has written."""
    work = _activated(layer.activation, written)
    if layer.bias is not None:
        work[bias_kind] += written
    return work


def _activated(activation, written):
    if activation in (None, keras.activations.linear):
        return Work()
    is_relu = isinstance(activation, layers.ReLU) or activation in (
        keras.activations.relu,
        keras.activations.relu6,
    )
    return Work(relu=written) if is_relu else Work(other=written)


# Both layers and operations


def _free(call):
    return Work()


def _written(call):
    return Work(other=_written_by(call))


def _reduced(call):
    return Work(other=_read_by(call))


def _batch_norm(call):
    return Work(batch_norm=_written_by(call))


def _relu(call):
    return Work(relu=_written_by(call))


def _pooled(call):
    return Work(pooled=elements(_before_padding(call.inputs[0]).shape))


def _unknown(call):
    return None


def _written_by(call):
    return sum(elements(tensor.shape) for tensor in call.outputs)


def _read_by(call):
    return sum(elements(tensor.shape) for tensor in call.inputs)


def _before_padding(tensor):
    # Padding zeros are not read by a pooling layer that pads by itself, so
    # neither are those of a padding layer in front of it.
    call = surgery.call_behind(tensor)
    if call is None or not isinstance(call.operation, _PADDING_LAYERS):
        return tensor
    return _before_padding(call.inputs[0])


_PADDING_LAYERS = tuple(
    getattr(layers, f"ZeroPadding{dims}D") for dims in (1, 2, 3)
)

# Operations behind keras.ops


def _rearranged(call):
    # A tensor that gains or loses elements per sample has mixed samples up:
    # everything behind it has a batch size that is not known.
    return _free(call) if _read_by(call) == _written_by(call) else None


def _product(call, operands, macs):
    tensors = [x for x in operands if isinstance(x, keras.KerasTensor)]
    return Work({"attention" if len(tensors) > 1 else "macs": macs})


def _matmul(call):
    first, second = argument(call, "x1"), argument(call, "x2")
    if not _shape(first) or not _shape(second):
        return _written(call)
    macs = _written_by(call) * (_shape(first)[-1] or 1)
    return _product(call, (first, second), macs)


def _tensordot(call):
    # Reading both operands once per element that they do not share gives
    # first * second = written * contracted ** 2.
    first, second = argument(call, "x1"), argument(call, "x2")
    read = elements(_shape(first)) * elements(_shape(second))
    return _product(call, (first, second), math.isqrt(read * _written_by(call)))


def _einsum(call):
    macs = _einsum_macs(call.operation.subscripts, map(_shape, call.args))
    return _product(call, call.args, macs) if macs else _written(call)


def _convolution_operation(call):
    taps = math.prod(_shape(argument(call, "kernel"))[:-1])
    return Work(macs=_written_by(call) * taps)


def _depthwise_operation(call):
    taps = math.prod(_shape(argument(call, "kernel"))[:-2])
    return Work(macs=_written_by(call) * taps)


def _separable_operation(call):
    between, filters = _shape(argument(call, "pointwise_kernel"))[-2:]
    taps = math.prod(_shape(argument(call, "depthwise_kernel"))[:-2])
    return Work(macs=_written_by(call) // filters * between * (taps + filters))


def _transposed_operation(call):
    taps = math.prod(_shape(argument(call, "kernel"))[:-1])
    return Work(macs=elements(call.inputs[0].shape) * taps)


def _dot_product_attention(call):
    query, key, value = (argument(call, x) for x in ("query", "key", "value"))
    scores = elements(_shape(query)[:-1]) * _shape(key)[1]
    dims = _shape(query)[-1] + _shape(value)[-1]
    return Work(attention=scores * dims, other=scores)


def _shape(operand):
    if hasattr(operand, "shape"):
        return tuple(operand.shape)
    return np.shape(operand)


def _einsum_macs(equation, shapes):
    """Counts the multiply-adds of an einsum, contracted from left to right.

    A step in which no label disappears is an elementwise product and counts
    none.
    """
    terms, output, sizes = _einsum_labels(equation, list(shapes))
    macs, current, *terms = 0, *map(set, terms)
    for position, term in enumerate(terms, start=1):
        later = output.union(*terms[position:])
        involved = (current & (term | later)) | (term & (current | later))
        current = involved & later
        if involved - current:
            macs += math.prod(sizes[label] for label in involved)
    return macs


def _einsum_labels(equation, shapes):
    """Labels of each operand and of the output, and each label's size."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms, sizes = [], {}
    for term, shape in zip(left.split(","), shapes, strict=True):
        before, dots, after = term.partition("...")
        hidden = len(shape) - len(before) - len(after) if dots else 0
        # The hidden axes of all operands are aligned at their last one.
        terms.append([*before, *range(-hidden, 0), *after])
        for label, size in zip(terms[-1], shape, strict=True):
            sizes[label] = max(sizes.get(label, 1), size or 1)
    if not arrow:
        right = [label for label in sizes if left.count(str(label)) == 1]
    hidden = {label for label in sizes if isinstance(label, int)}
    return terms, hidden.union(set(right) - {"."}), sizes


def _names(text, numbers=""):
    """Splits a list of names; a `#` stands for each of `numbers` in turn."""
    for name in text.split():
        if "#" in name:
            yield from (name.replace("#", number) for number in numbers)
        else:
            yield name


_LAYER_NAMES = (
    (_convolution, "Conv#D"),
    (_transposed, "Conv#DTranspose"),
    (_depthwise, "DepthwiseConv#D"),
    (_separable, "SeparableConv#D"),
    (_dense, "Dense"),
    (_einsum_dense, "EinsumDense"),
    (_additive_attention, "AdditiveAttention"),
    (_batch_norm, "BatchNormalization"),
    (_relu, "ReLU"),
    (_activation_layer, "Activation"),
    (_merge, "Add Average Maximum Minimum Multiply Subtract"),
    (
        _pooled,
        "MaxPooling#D AveragePooling#D GlobalMaxPooling#D "
        "GlobalAveragePooling#D AdaptiveMaxPooling#D AdaptiveAveragePooling#D",
    ),
    (
        _written,
        "LayerNormalization GroupNormalization RMSNormalization "
        "UnitNormalization ELU LeakyReLU PReLU Softmax Rescaling "
        "Normalization Resizing",
    ),
    (_up_sampling, "UpSampling#D"),
    (
        _free,
        "ActivityRegularization AlphaDropout Concatenate Cropping#D Dropout "
        "Embedding Flatten GaussianDropout GaussianNoise Identity InputLayer "
        "Masking Permute RepeatVector Reshape SpatialDropout#D ZeroPadding#D",
    ),
    (_unknown, "MelSpectrogram STFTSpectrogram"),
)

LAYERS = {
    getattr(layers, name): layer_formula
    for layer_formula, text in _LAYER_NAMES
    for name in _names(text, "123")
    if hasattr(layers, name)
}
# The other preprocessing layers look up, encode, or change images in training
# only. A pipeline holds layers of any kind, so it is opened.
LAYERS = {
    preprocessing: _free
    for preprocessing in vars(layers).values()
    if isinstance(preprocessing, type)
    and preprocessing.__module__.startswith("keras.src.layers.preprocessing.")
    and preprocessing.__name__ != "Pipeline"
} | LAYERS

_OPERATION_NAMES = (
    (_convolution_operation, "Conv"),
    (_transposed_operation, "ConvTranspose"),
    (_depthwise_operation, "DepthwiseConv"),
    (_separable_operation, "SeparableConv"),
    (_matmul, "Matmul Dot Inner"),
    (_tensordot, "Tensordot"),
    (_einsum, "Einsum"),
    (_dot_product_attention, "DotProductAttention"),
    (_batch_norm, "BatchNorm"),
    (_relu, "Relu Relu6 ReLU"),
    (
        _pooled,
        "MaxPool AveragePool AdaptiveMaxPool AdaptiveAveragePool",
    ),
    (_rearranged, "ExpandDims Ravel Rearrange Reshape Squeeze"),
    (
        _free,
        "Append Arange Array ArraySplit BroadcastTo Cast Concatenate "
        "ConvertToTensor Copy CropImages DepthToSpace Diag Diagflat Diagonal "
        "Dsplit Dstack EmptyLike ExtractPatches ExtractSequences Flip Fliplr "
        "Flipud Full FullLike GetItem Hsplit Hstack Imag Meshgrid Moveaxis "
        "MultiHot Ndim OneHot OnesLike Pad PadImages Real Repeat Roll Rot90 "
        "SaturateCast Scatter ScatterUpdate Size Slice SliceUpdate "
        "SpaceToDepth Split Stack StopGradient Swapaxes Take TakeAlongAxis "
        "Tile Transpose Tril Triu Unfold Unstack View ViewAsComplex "
        "ViewAsReal Vsplit Vstack ZerosLike",
    ),
    (
        _reduced,
        "All Amax Amin Any Argmax Argmin Average Bincount CountNonzero "
        "Logsumexp Max Mean Median Min Moments Nanargmax Nanargmin Nanmax "
        "Nanmean Nanmedian Nanmin Nanpercentile Nanprod Nanquantile Nanstd "
        "Nansum Nanvar Norm Percentile Prod Ptp Quantile SegmentMax "
        "SegmentMin SegmentProd SegmentSum Std Sum Trace Trapezoid Var",
    ),
    (
        _written,
        "Erf Erfc Erfinv HSVToRGB InTopK RGBToGrayscale RGBToHSV Resize "
        "Rsqrt TopK",
    ),
    (_unknown, "CTCDecode CTCLoss Corrcoef Correlate Vdot"),
)

OPERATIONS = {
    name: operation_formula
    for operation_formula, text in _OPERATION_NAMES
    for name in _names(text)
}
# What these hold and is not named above writes each output element once.
_ELEMENTWISE_MODULES = (
    "keras.src.ops.numpy",
    "keras.src.ops.nn",
    "keras.src.activations",
)


def _operation_formula(kind):
    if kind is keras.Function:
        return None
    if kind.__module__.startswith(("keras.src.ops.", "keras.src.activations")):
        if kind.__name__ in OPERATIONS:
            return OPERATIONS[kind.__name__]
        if kind.__module__.startswith(_ELEMENTWISE_MODULES):
            return _written
    return _unknown
