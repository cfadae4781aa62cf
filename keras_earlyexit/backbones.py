"""The EENets papers' networks as plain Keras models, without exits.

Why they are not taken from `keras.applications`: placement and relative cost
are compared with the authors' figures to the integer, so padding, shortcuts
and parameter counts follow their PyTorch code.

- A convolution with stride 2 pads both sides alike, as PyTorch does; Keras'
  `padding="same"` pads one side only. It is therefore a `ZeroPadding2D`
  followed by a convolution without padding. The same holds for max pooling,
  where a zero is as good as minus infinity because a ReLU stands before it.
- In the ResNets, convolutions start Kaiming normal by fan out. All that the
  authors leave to PyTorch (dense layers, and the convolutions of EENet-8)
  starts uniform in +-1 / sqrt(fan in), biases included.
- Batch normalisation keeps 0.9 of its moving statistics at each step, epsilon
  1e-5. One difference is left: PyTorch's moving variance is the unbiased one.

All models are channels-last, whatever `keras.config.image_data_format()` says,
because an exit must find the channels on the last axis. Weights are drawn by
Keras' global seed: call `keras.utils.set_random_seed` for reproducible ones.
"""

import numbers

import keras
from keras import layers

# depth: (blocks in each of the four groups, bottleneck blocks or not)
_IMAGENET_DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


def resnet_cifar(depth, input_shape, num_classes):
    """Builds the ResNet for small images, of depth 6n + 2.

    A 3x3 convolution with 16 filters, three groups of n basic blocks with 16,
    32 and 64 filters, global average pooling and a softmax. Groups 2 and 3
    begin with stride 2; their shortcut is a 1x1 convolution with batch
    normalisation.

    Blocks are numbered from 1 over the whole network. Block i ends at layer
    `block{i}_out`, the ReLU after the addition `block{i}_add`.

    Args:
        depth: Integer, 6n + 2: 20, 32, 44, 56 and 110 in the paper.
        input_shape: `(height, width, channels)`, without the batch.
        num_classes: Integer, at least 2.

    Returns:
        A functional `keras.Model`, not compiled: images
        `(batch, height, width, channels)` to probabilities
        `(batch, num_classes)`.

    Raises:
        ValueError: If an argument is not as described.

    Example:

    >>> from keras_earlyexit import backbones
    >>> model = backbones.resnet_cifar(20, (32, 32, 3), 10)
    >>> model.output_shape
    (None, 10)
    >>> model.get_layer("block9_out").output.shape
    (None, 8, 8, 64)

    Reference:

    - [He et al., 2016](https://arxiv.org/abs/1512.03385), section 4.2, with
      the shortcuts of
      [Demir and Akbas, 2024](https://arxiv.org/abs/2409.05336)
    """
    if not _is_integer(depth) or depth < 8 or (depth - 2) % 6:
        raise ValueError(
            "`depth` must be an integer of the form 6n + 2, at least 8. "
            f"Received depth={depth!r} ({_type(depth)}). "
            "Use one of 20, 32, 44, 56, 110, or `resnet` for 18, 34 and 101."
        )
    input_shape, num_classes = _checked(input_shape, num_classes)

    inputs = layers.Input(input_shape)
    x = _conv(inputs, 16, 3, "stem_conv")
    x = layers.ReLU(name="stem_relu")(_batch_norm(x, "stem_bn"))
    x = _groups(x, (16, 32, 64), ((depth - 2) // 6,) * 3, _basic_branch, 1)
    return _with_head(inputs, x, num_classes, f"resnet_cifar_{depth}")


def resnet(depth, input_shape, num_classes):
    """Builds the ResNet for ImageNet, of depth 18, 34, 50, 101 or 152.

    A 7x7 convolution with stride 2 and 64 filters, 3x3 max pooling with stride
    2, four groups of blocks with 64, 128, 256 and 512 filters, global average
    pooling and a softmax. Depths 18 and 34 have basic blocks, the others
    bottleneck blocks with four times as many output channels, whose stride
    lies in the 3x3 convolution.

    The stem is the same for small images: 28x28 pixels reach the first block
    as 7x7. Blocks are numbered from 1 over the whole network. Block i ends at
    layer `block{i}_out`, the ReLU after the addition `block{i}_add`.

    Args:
        depth: Integer: 18, 34, 50, 101 or 152.
        input_shape: `(height, width, channels)`, without the batch.
        num_classes: Integer, at least 2.

    Returns:
        A functional `keras.Model`, not compiled: images
        `(batch, height, width, channels)` to probabilities
        `(batch, num_classes)`.

    Raises:
        ValueError: If an argument is not as described.

    Example:

    >>> from keras_earlyexit import backbones
    >>> model = backbones.resnet(18, (28, 28, 1), 10)
    >>> model.get_layer("block1_out").output.shape
    (None, 7, 7, 64)

    Reference:

    - [He et al., 2016](https://arxiv.org/abs/1512.03385)
    """
    if not _is_integer(depth) or depth not in _IMAGENET_DEPTHS:
        raise ValueError(
            f"`depth` must be one of {', '.join(map(str, _IMAGENET_DEPTHS))}. "
            f"Received depth={depth!r} ({_type(depth)}). "
            "Use one of these, or `resnet_cifar` for depths 6n + 2."
        )
    input_shape, num_classes = _checked(input_shape, num_classes)
    repetitions, is_bottleneck = _IMAGENET_DEPTHS[depth]
    if is_bottleneck:
        branch, expansion = _bottleneck_branch, 4
    else:
        branch, expansion = _basic_branch, 1

    inputs = layers.Input(input_shape)
    x = _conv(inputs, 64, 7, "stem_conv", strides=2)
    x = layers.ReLU(name="stem_relu")(_batch_norm(x, "stem_bn"))
    x = _pad(x, 1, "stem_pool_pad")
    x = layers.MaxPooling2D(
        3, 2, data_format="channels_last", name="stem_pool"
    )(x)
    x = _groups(x, (64, 128, 256, 512), repetitions, branch, expansion)
    return _with_head(inputs, x, num_classes, f"resnet_{depth}")


def eenet8(filters, input_shape, num_classes):
    """Builds the backbone of EENet-8, a very small network of three blocks.

    A 3x3 convolution, then blocks of two 3x3 convolutions with `filters`,
    `2 * filters` and `4 * filters` filters; blocks 2 and 3 have stride 2 and
    normalise before they convolve. All convolutions have a bias.

    A block ends here with the raw sum, without normalisation or ReLU: layer
    `block{i}_out` is the addition itself. The authors' two exits hang on
    `block1_out` and `block2_out`. Their parameter counts, 1490 for 2 filters
    and 5332 for 4 (one channel, 10 classes), include the dense layers of both
    exits, `(3 * filters + 2) * (num_classes + 1)` parameters. The plain model
    built here has 1402 and 5178; there is no confidence at the end.

    Args:
        filters: Integer, filters of the first block: 2 or 4 in the paper.
        input_shape: `(height, width, channels)`, without the batch.
        num_classes: Integer, at least 2.

    Returns:
        A functional `keras.Model`, not compiled: images
        `(batch, height, width, channels)` to probabilities
        `(batch, num_classes)`.

    Raises:
        ValueError: If an argument is not as described.

    Example:

    >>> import math
    >>> from keras_earlyexit import backbones
    >>> model = backbones.eenet8(2, (28, 28, 1), 10)
    >>> sum(math.prod(weight.shape) for weight in model.trainable_weights)
    1402

    Reference:

    - [Demir and Akbas, 2024](https://arxiv.org/abs/2409.05336)
    """
    if not _is_integer(filters) or filters < 1:
        raise ValueError(
            "`filters` must be an integer, at least 1. "
            f"Received filters={filters!r} ({_type(filters)}). "
            "Use 2 or 4 for the networks of the paper."
        )
    input_shape, num_classes = _checked(input_shape, num_classes)

    inputs = layers.Input(input_shape)
    x = _conv(inputs, filters, 3, "stem_conv", torch_default=True)
    x = layers.ReLU(name="stem_relu")(_batch_norm(x, "stem_bn"))

    y = _conv(x, filters, 3, "block1_conv1", torch_default=True)
    y = layers.ReLU(name="block1_relu1")(_batch_norm(y, "block1_bn1"))
    y = _conv(y, filters, 3, "block1_conv2", torch_default=True)
    x = layers.Add(name="block1_out")([y, x])

    for block, width in ((2, 2 * filters), (3, 4 * filters)):
        name = f"block{block}"
        y = layers.ReLU(name=f"{name}_relu1")(_batch_norm(x, f"{name}_bn1"))
        y = _conv(y, width, 3, f"{name}_conv1", 2, torch_default=True)
        y = layers.ReLU(name=f"{name}_relu2")(_batch_norm(y, f"{name}_bn2"))
        y = _conv(y, width, 3, f"{name}_conv2", torch_default=True)
        x = _conv(x, width, 1, f"{name}_shortcut_conv", 2, torch_default=True)
        x = layers.Add(name=f"{name}_out")([y, x])

    x = layers.ReLU(name="head_relu")(_batch_norm(x, "head_bn"))
    return _with_head(inputs, x, num_classes, f"eenet8_{filters}")


def _groups(x, widths, repetitions, branch, expansion):
    """Chains residual blocks; each group but the first begins with stride 2."""
    block = 0
    for group, filters in enumerate(widths):
        for repetition in range(repetitions[group]):
            block += 1
            strides = 2 if group > 0 and repetition == 0 else 1
            name = f"block{block}"
            y = branch(x, filters, strides, name)
            if strides != 1 or x.shape[-1] != expansion * filters:
                x = _conv(
                    x, expansion * filters, 1, f"{name}_shortcut_conv", strides
                )
                x = _batch_norm(x, f"{name}_shortcut_bn")
            x = layers.Add(name=f"{name}_add")([y, x])
            x = layers.ReLU(name=f"{name}_out")(x)
    return x


def _basic_branch(x, filters, strides, name):
    x = _conv(x, filters, 3, f"{name}_conv1", strides)
    x = layers.ReLU(name=f"{name}_relu1")(_batch_norm(x, f"{name}_bn1"))
    x = _conv(x, filters, 3, f"{name}_conv2")
    return _batch_norm(x, f"{name}_bn2")


def _bottleneck_branch(x, filters, strides, name):
    x = _conv(x, filters, 1, f"{name}_conv1")
    x = layers.ReLU(name=f"{name}_relu1")(_batch_norm(x, f"{name}_bn1"))
    x = _conv(x, filters, 3, f"{name}_conv2", strides)
    x = layers.ReLU(name=f"{name}_relu2")(_batch_norm(x, f"{name}_bn2"))
    x = _conv(x, 4 * filters, 1, f"{name}_conv3")
    return _batch_norm(x, f"{name}_bn3")


def _with_head(inputs, x, num_classes, name):
    x = layers.GlobalAveragePooling2D(
        data_format="channels_last", name="head_pool"
    )(x)
    kernel, bias = _torch_default_initializers(x.shape[-1])
    outputs = layers.Dense(
        num_classes,
        activation="softmax",
        kernel_initializer=kernel,
        bias_initializer=bias,
        name="head",
    )(x)
    return keras.Model(inputs, outputs, name=name)


def _conv(x, filters, size, name, strides=1, torch_default=False):
    """Convolves with PyTorch's padding `size // 2` on all four sides."""
    if strides > 1 and size > 1:
        x = _pad(x, size // 2, f"{name}_pad")
    # An initializer draws the same values each time it is called, so every
    # layer gets its own.
    if torch_default:
        kernel, bias = _torch_default_initializers(size * size * x.shape[-1])
    else:
        kernel = keras.initializers.VarianceScaling(
            2.0, "fan_out", "untruncated_normal"
        )
        bias = None
    return layers.Conv2D(
        filters,
        size,
        strides,
        padding="valid" if strides > 1 else "same",
        data_format="channels_last",
        use_bias=torch_default,
        kernel_initializer=kernel,
        bias_initializer=bias,
        name=name,
    )(x)


def _pad(x, width, name):
    return layers.ZeroPadding2D(width, "channels_last", name=name)(x)


def _batch_norm(x, name):
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)


def _torch_default_initializers(fan_in):
    return (
        keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform"),
        keras.initializers.RandomUniform(-(fan_in**-0.5), fan_in**-0.5),
    )


def _checked(input_shape, num_classes):
    if (
        not isinstance(input_shape, (tuple, list))
        or len(input_shape) != 3
        or not all(_is_integer(size) and size > 0 for size in input_shape)
    ):
        raise ValueError(
            "`input_shape` must be three positive integers: height, width, "
            f"channels. Received input_shape={input_shape!r} "
            f"({_type(input_shape)}). "
            "Leave the batch out, and give sizes that are known, such as "
            "(32, 32, 3)."
        )
    if not _is_integer(num_classes) or num_classes < 2:
        raise ValueError(
            "`num_classes` must be an integer, at least 2. "
            f"Received num_classes={num_classes!r} ({_type(num_classes)}). "
            "The head is a softmax: use 2 for a yes-or-no question."
        )
    return tuple(int(size) for size in input_shape), int(num_classes)


def _is_integer(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _type(value):
    return type(value).__name__
