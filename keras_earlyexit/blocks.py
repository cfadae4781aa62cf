"""Exit blocks: the layers of an early exit.

A *softmax branch* gives the prediction, a *confidence branch* (one sigmoid
unit) says whether the sample may leave. The kinds differ only in how the
feature becomes the vector that both branches read; in a `dense` block the
softmax branch reads the feature itself, position by position.
"""

import math

import keras
from keras import layers, ops

KINDS = ("pool", "bnpool", "plain", "conv", "token", "dense")
_CONVOLUTIONS = {3: layers.Conv1D, 4: layers.Conv2D, 5: layers.Conv3D}
_POOLINGS = {
    3: layers.GlobalAveragePooling1D,
    4: layers.GlobalAveragePooling2D,
    5: layers.GlobalAveragePooling3D,
}


@keras.saving.register_keras_serializable(package="keras_earlyexit")
class ExitBlock(layers.Layer):
    """An exit: a feature becomes a prediction and a confidence.

    With z the vector that the feature is reduced to,
    `prediction = activation(W z + b)` and `confidence = sigmoid(w.z + c)`.
    Both are computed in float32 under mixed precision. Where the feature has
    a mask, means are over the positions that it leaves.

    Args:
        units: Number of classes, labels or values.
        kind: How the feature becomes a vector. `"pool"`: mean over all
            positions. `"bnpool"`: batch normalisation, then the mean.
            `"plain"`: flattened. `"conv"`: a 3-wide convolution of stride 2
            with as many filters as channels, batch normalisation, ReLU, then
            the mean, for exits that sit very early. `"token"`: layer
            normalisation, then one vector of a sequence (see `token`).
            `"dense"`: an answer at every position. With z_p the feature at
            position p, `prediction = activation(resize(W z_p + b))`, and
            the confidence reads the mean of all z_p; `resize` interpolates
            linearly where the feature has other positions than the answer
            (see `positions`).
        activation: Activation of the prediction: `"softmax"`, `"sigmoid"`, or
            `"linear"` for logits and for values.
        token: For kind `"token"`: `"mean"` of all tokens, or the `"first"`
            (a class token).
        data_format: `"channels_last"` or `"channels_first"`; `None` takes
            Keras' default. Ignored by `"plain"` and `"token"`.
        positions: For kind `"dense"`: shape of the positions to answer at,
            such as (height, width) or (tokens,); `None` takes the feature's.
        **kwargs: `name`, `dtype`, `trainable`.

    Input shape:
        `(batch, ..., channels)`: a vector, sequence, image or volume.

    Output shape:
        A tuple: prediction `(batch, units)`, or `(batch, positions..., units)`
        for kind `"dense"`, and confidence `(batch, 1)`.

    Raises:
        ValueError: For an unknown kind, or one that the feature's shape does
            not allow.

    Example:

    ```python
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(16, 3, activation="relu")(inputs)
    prediction, confidence = ee.ExitBlock(10, name="exit_0")(x)
    ```

    Reference:
        Demir and Akbas, Early-exit Convolutional Neural Networks,
        arXiv 2409.05336 (`pool`, `bnpool`, `plain`).
    """

    def __init__(
        self,
        units,
        kind="pool",
        activation="softmax",
        token="mean",
        data_format=None,
        positions=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if kind not in KINDS:
            raise ValueError(
                f"Expected `kind` to be one of {', '.join(KINDS)}. Received: "
                f"kind={kind!r} (of type {type(kind).__name__})."
            )
        if token not in ("mean", "first"):
            raise ValueError(
                "Expected `token` to be 'mean' or 'first'. Received: "
                f"token={token!r}."
            )
        self.supports_masking = True
        self.units = units
        self.kind = kind
        self.activation = keras.activations.get(activation)
        self.token = token
        self.data_format = data_format or keras.config.image_data_format()
        self.positions = _checked_positions(positions)

    def build(self, feature_shape):
        feature_shape = tuple(feature_shape)
        self.reduction = self._reduction_layers(feature_shape)
        shape = feature_shape
        for layer in self.reduction:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        if self.kind == "token" and self.token == "first":
            shape = (shape[0], shape[-1])
        if shape[-1] is None:
            raise ValueError(
                f"Exit block '{self.name}' of kind {self.kind!r} cannot take "
                f"a feature of shape {feature_shape}: the size of the vector "
                "behind it is unknown. Choose a kind that pools, such as "
                "'pool', or give the model a fixed input shape."
            )
        head_dtype = "float64" if self.compute_dtype == "float64" else "float32"
        dense = self.kind == "dense"
        self.prediction_branch = layers.Dense(
            self.units,
            # Behind the resizing, so that probabilities sum to 1 there too.
            activation=None if dense else self.activation,
            dtype=head_dtype,
            name="prediction_branch",
        )
        self.confidence_branch = layers.Dense(
            1, activation="sigmoid", dtype=head_dtype, name="confidence_branch"
        )
        self.prediction_branch.build(shape)
        self.confidence_branch.build(shape)
        if dense:
            self._check_positions(feature_shape)
        self.built = True

    def call(self, feature, training=None):
        vector = feature
        for layer in self.reduction:
            if isinstance(layer, layers.BatchNormalization):
                vector = layer(vector, training=training)
            else:
                vector = layer(vector)
        if self.kind == "token" and self.token == "first":
            vector = vector[:, 0, :]
        confidence = self.confidence_branch(vector)
        if self.kind == "dense":
            return self._dense_prediction(feature), confidence
        return self.prediction_branch(vector), confidence

    def _dense_prediction(self, feature):
        feature = ops.cast(feature, self.prediction_branch.compute_dtype)
        axis = self._channel_axis(len(feature.shape))
        if axis == 1:
            feature = ops.moveaxis(feature, axis, -1)
        found = feature.shape[1:-1]
        positions = found if self.positions is None else self.positions
        # Resizing and the branch are both linear and may change places: the
        # branch has least to do where there are fewer positions.
        if None not in positions and math.prod(positions) < math.prod(found):
            feature = _resize(feature, positions)
        answer = self.prediction_branch(feature)
        return self.activation(_resize(answer, positions))

    def _reduction_layers(self, shape):
        """The layers that turn a feature of `shape` into a vector."""
        rank = len(shape)
        if self.kind == "plain":
            return [layers.Flatten(dtype=self.dtype_policy)]
        if self.kind == "token":
            self._check_rank(rank, (3,), "(batch, tokens, channels)")
            norm = layers.LayerNormalization(
                epsilon=1e-6, dtype=self.dtype_policy
            )
            if self.token == "first":
                return [norm]
            return [norm, layers.GlobalAveragePooling1D(**self._format(False))]
        allowed = (3, 4, 5) if self.kind == "dense" else (2, 3, 4, 5)
        self._check_rank(rank, allowed, "(batch, ..., channels)")
        found = []
        if self.kind == "bnpool":
            found = [self._batch_normalization(rank)]
        if self.kind == "conv":
            self._check_rank(rank, (3, 4, 5), "(batch, positions, channels)")
            axis = self._channel_axis(rank)
            found = [
                _CONVOLUTIONS[rank](
                    shape[axis],
                    3,
                    strides=2,
                    padding="same",
                    use_bias=False,
                    kernel_initializer="he_normal",
                    **self._format(True),
                ),
                self._batch_normalization(rank),
                layers.ReLU(dtype=self.dtype_policy),
            ]
        if rank > 2:
            found.append(_POOLINGS[rank](**self._format(True)))
        return found

    def _batch_normalization(self, rank):
        return layers.BatchNormalization(
            axis=self._channel_axis(rank), dtype=self.dtype_policy
        )

    def _channel_axis(self, rank):
        first = self.data_format == "channels_first" and rank > 2
        return 1 if first else rank - 1

    def _format(self, own):
        data_format = self.data_format if own else "channels_last"
        return {"data_format": data_format, "dtype": self.dtype_policy}

    def _check_rank(self, rank, allowed, wanted):
        if rank not in allowed:
            raise ValueError(
                f"Exit block '{self.name}' of kind {self.kind!r} expects a "
                f"feature of shape {wanted}. Received: a feature with {rank} "
                "axes. Choose another `block`, or hang the exit elsewhere."
            )

    def _positions_of(self, feature_shape):
        axis = self._channel_axis(len(feature_shape))
        return (*feature_shape[1:axis], *feature_shape[axis + 1 :])

    def _check_positions(self, feature_shape):
        found = self._positions_of(feature_shape)
        wanted = found if self.positions is None else self.positions
        if len(wanted) != len(found):
            raise ValueError(
                f"Exit block '{self.name}' of kind 'dense' is to answer at "
                f"positions of shape {wanted} and expects a feature with as "
                "many axes between the batch and the channels. Received: a "
                f"feature of shape {feature_shape}. Choose 'pool' for a model "
                "that answers once for each sample; else pass a callable as "
                "`block` that reshapes the feature."
            )
        if wanted != found and None in (*wanted, *found):
            raise ValueError(
                f"Exit block '{self.name}' of kind 'dense' cannot resize an "
                f"axis whose size is open, from positions {found} to {wanted}. "
                f"Received: a feature of shape {feature_shape}. Give the "
                "model's inputs a fixed shape."
            )

    def compute_mask(self, feature, previous_mask):
        return None

    def compute_output_spec(self, feature, training=None):
        dtype = self.prediction_branch.compute_dtype
        return tuple(
            keras.KerasTensor(shape, dtype=dtype)
            for shape in self.compute_output_shape(feature.shape)
        )

    def compute_output_shape(self, feature_shape):
        positions = ()
        if self.kind == "dense":
            positions = self.positions or self._positions_of(feature_shape)
        batch = feature_shape[0]
        return (batch, *positions, self.units), (batch, 1)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "kind": self.kind,
            "activation": keras.activations.serialize(self.activation),
            "token": self.token,
            "data_format": self.data_format,
            "positions": self.positions,
        }


def attach(block, feature, head, name):
    """Hangs an exit block on a feature.

    Args:
        block: A kind of `ExitBlock`, an `ExitBlock` (copied for each exit, its
            units and activation taken from the head), or a callable. The
            callable gets the feature (a `KerasTensor`) and returns either the
            vector that both branches read (for a head that answers at every
            position a feature with as many axes, which a `dense` block then
            reads), or `(prediction, confidence)`; the layers it makes need
            names that differ from exit to exit, or none.
        feature: The feature, a `KerasTensor`.
        head: The model's `tasks.Head`.
        name: Name of the exit.

    Returns:
        `(prediction, confidence)`, two `KerasTensor`.

    Raises:
        TypeError: If `block` is none of these.
        ValueError: If what a callable returns has the wrong shape.
    """
    of_head = {
        "name": name,
        "units": head.units,
        "activation": head.activation,
        "positions": head.positions,
    }
    if isinstance(block, ExitBlock):
        config = {**block.get_config(), **of_head}
        return ExitBlock.from_config(config)(feature)
    if isinstance(block, str):
        return ExitBlock(kind=block, **of_head)(feature)
    if not callable(block) or isinstance(block, type):
        raise TypeError(
            f"Expected `block` to be one of {', '.join(KINDS)}, an ExitBlock, "
            f"or a callable. Received: block={block!r} (of type "
            f"{type(block).__name__})."
        )
    made = block(feature)
    if _is_tensor(made) and len(made.shape) == 2 + len(head.positions):
        kind = "dense" if head.positions else "pool"
        # What a callable hands on has its channels last, as the answer has.
        of_head["data_format"] = "channels_last"
        return ExitBlock(kind=kind, **of_head)(made)
    wanted = "a vector of shape (batch, channels)"
    if head.positions:
        wanted = "a tensor of shape (batch, positions..., channels)"
    if (
        not isinstance(made, (list, tuple))
        or len(made) != 2
        or not all(map(_is_tensor, made))
    ):
        raise ValueError(
            f"Expected the `block` callable to return {wanted}, or a tuple "
            f"(prediction, confidence). Received: {made!r} (of type "
            f"{type(made).__name__}) for '{name}'."
        )
    shapes = [tuple(tensor.shape) for tensor in made]
    if shapes[0][-1] != head.units or shapes[1][1:] != (1,):
        raise ValueError(
            "Expected the `block` callable to return a prediction of shape "
            f"(batch, {head.units}) and a confidence of shape (batch, 1). "
            f"Received: shapes {shapes} for '{name}'."
        )
    return tuple(made)


def _checked_positions(positions):
    if positions is None:
        return None
    if not isinstance(positions, (list, tuple)) or not all(
        size is None or (isinstance(size, int) and size > 0)
        for size in positions
    ):
        raise ValueError(
            "Expected `positions` to be a tuple of sizes of at least 1, such "
            f"as (height, width). Received: positions={positions!r} (of type "
            f"{type(positions).__name__})."
        )
    return tuple(positions)


def _is_tensor(value):
    return isinstance(value, keras.KerasTensor)


def _resize(values, positions):
    """Values (batch, positions..., channels) at other positions, linearly."""
    found, channels = values.shape[1:-1], values.shape[-1]
    if all(p in (None, size) for p, size in zip(positions, found, strict=True)):
        return values

    def resize(images, size):
        return ops.image.resize(images, size, data_format="channels_last")

    if len(positions) == 1:
        images = ops.expand_dims(values, axis=2)
        return ops.squeeze(resize(images, (*positions, 1)), axis=2)
    if len(positions) == 2:
        return resize(values, positions)
    # A volume: its depth first, then each of its slices.
    depth, *slice_shape = found
    pixels = math.prod(slice_shape)
    images = ops.reshape(values, (-1, depth, pixels, channels))
    images = resize(images, (positions[0], pixels))
    images = ops.reshape(images, (-1, *slice_shape, channels))
    images = resize(images, positions[1:])
    return ops.reshape(images, (-1, *positions, channels))
