"""Small models of every kind that the library takes, for tests of any module.

`ZOO[name]` is an `Entry`: `build()` gives a fresh plain model of a few
thousand parameters, `batch()` random inputs with labels that can be learnt,
`add_exits()` the model with the exits that suit it. `plain_and_early(name)`
gives both models, made once for all tests of a run.

`LIGHT` are a few models that differ much, for what is slow to test.
"""

import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np
from keras import layers, ops

from keras_earlyexit import building, surgery

VOCABULARY = 30
PACKAGE = "keras_earlyexit_tests"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Args:
        build: Makes the plain model.
        units: Classes, labels or values that it answers with.
        task: As in `tasks.Head`.
        exits: Exits that it takes: a count, or names of legal cuts.
        block: The exit block that suits its features.
    """

    build: Callable
    units: int = 3
    task: str = "classification"
    exits: object = 2
    block: str = "pool"

    def add_exits(self, model=None, **options):
        """The model with exits; `options` go before the entry's own."""
        options = {"exits": self.exits, "block": self.block, **options}
        return building.add_exits(model or self.build(), **options)

    def batch(self, rows=8, seed=0):
        """Random inputs in the model's own structure, and labels for them.

        Labels are a linear function of the inputs, so that a training run on
        them makes progress.
        """
        rng = np.random.default_rng(seed)
        x = keras.tree.map_structure(
            lambda tensor: _random_input(tensor, rows, rng),
            _inputs_of(self.build),
        )
        flat = np.concatenate(
            [
                array.reshape(rows, -1) / np.abs(array).max()
                for array in keras.tree.flatten(x)
            ],
            axis=1,
        )
        # The same function for every seed.
        weights = np.random.default_rng(0).normal(
            size=(flat.shape[1], self.units)
        )
        targets = (flat - flat.mean()) @ weights
        if self.task == "classification":
            return x, targets.argmax(axis=1)
        if self.task == "multilabel":
            return x, (targets > 0).astype("float32")
        return x, (targets / np.abs(targets).max()).astype("float32")


@functools.cache
def plain_and_early(name):
    """A model and the same with exits, for tests that change neither."""
    plain = ZOO[name].build()
    return plain, ZOO[name].add_exits(plain)


def as_numpy(tensor):
    """The values of a tensor, in a type that NumPy can compute with."""
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))


@functools.cache
def _inputs_of(build):
    return surgery.trace(build()).inputs


def _random_input(tensor, rows, rng):
    shape = (rows, *tensor.shape[1:])
    if tensor.dtype == "uint8":
        return rng.integers(0, 256, shape, dtype="uint8")
    if tensor.dtype.startswith("int"):
        tokens = rng.integers(1, VOCABULARY, shape).astype(tensor.dtype)
        # Padded at the end, as text is: half of the rows, by two tokens.
        tokens[: rows // 2, -2:] = 0
        return tokens
    return rng.normal(size=shape).astype(tensor.dtype)


def sequential_cnn():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3), dtype="uint8", name="image"),
            layers.Rescaling(1 / 255, name="rescaling"),
            layers.Conv2D(6, 3, activation="relu", name="conv_0"),
            layers.BatchNormalization(name="norm_0"),
            layers.Conv2D(8, 3, activation="relu", name="conv_1"),
            layers.MaxPooling2D(name="pool_1"),
            layers.Conv2D(8, 1, activation="relu", name="conv_2"),
            layers.Flatten(name="flatten"),
            layers.Dropout(0.1, name="dropout"),
            layers.Dense(3, activation="softmax", name="head"),
        ],
        name="sequential_cnn",
    )


def _residual_block(x, filters, name, dtype=None):
    strides = 1 if x.shape[-1] == filters else 2
    options = {"padding": "same", "use_bias": False, "dtype": dtype}
    y = layers.Conv2D(filters, 3, strides, name=f"{name}_conv1", **options)(x)
    y = layers.BatchNormalization(name=f"{name}_bn1", dtype=dtype)(y)
    y = layers.ReLU(name=f"{name}_relu1", dtype=dtype)(y)
    y = layers.Conv2D(filters, 3, name=f"{name}_conv2", **options)(y)
    y = layers.BatchNormalization(name=f"{name}_bn2", dtype=dtype)(y)
    if strides != 1:
        x = layers.Conv2D(filters, 1, 2, name=f"{name}_skip", **options)(x)
    x = layers.Add(name=f"{name}_add", dtype=dtype)([y, x])
    return layers.ReLU(name=f"{name}_out", dtype=dtype)(x)


def residual_cnn(dtype=None, name="residual_cnn"):
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", name="stem", dtype=dtype)(image)
    x = layers.ReLU(name="stem_relu", dtype=dtype)(x)
    for i, filters in enumerate((4, 4, 8)):
        x = _residual_block(x, filters, f"block{i}", dtype)
    x = layers.GlobalAveragePooling2D(name="pool", dtype=dtype)(x)
    outputs = layers.Dense(
        3, activation="softmax", name="head", dtype="float32"
    )(x)
    return keras.Model(image, outputs, name=name)


def mixed_precision():
    return residual_cnn("mixed_bfloat16", "mixed_precision")


def dense_cnn():
    image = keras.Input((8, 8, 2), name="image")
    x = layers.Conv2D(4, 3, padding="same", name="stem")(image)
    for i in range(3):
        y = layers.BatchNormalization(name=f"block{i}_bn")(x)
        y = layers.Activation("relu", name=f"block{i}_relu")(y)
        y = layers.Conv2D(3, 3, padding="same", name=f"block{i}_conv")(y)
        x = layers.Concatenate(name=f"block{i}_concat")([x, y])
        if i == 1:
            x = layers.BatchNormalization(name="transition_bn")(x)
            x = layers.ReLU(name="transition_relu")(x)
            x = layers.Conv2D(4, 1, name="transition_conv")(x)
            x = layers.AveragePooling2D(2, name="transition_pool")(x)
    x = layers.GlobalMaxPooling2D(name="pool")(x)
    # The activation stands by itself, so that logits are a legal cut too.
    x = layers.Dense(3, name="logits")(x)
    return keras.Model(
        image, layers.Softmax(name="softmax")(x), name="dense_cnn"
    )


def inception():
    image = keras.Input((8, 8, 2), name="image")
    x = layers.Conv2D(4, 3, padding="same", name="stem")(image)
    for i in range(3):
        branches = [
            layers.Conv2D(2, 1, activation="relu", name=f"mixed{i}_a")(x),
            layers.Conv2D(
                3, 3, padding="same", activation="relu", name=f"mixed{i}_b"
            )(x),
            layers.MaxPooling2D(3, 1, padding="same", name=f"mixed{i}_pool")(x),
        ]
        x = layers.Concatenate(name=f"mixed{i}")(branches)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(3, activation="softmax", name="head")(x)
    return keras.Model(image, outputs, name="inception")


def nested_functional():
    """A model in a model in a model, the middle one with training=False."""
    inside = keras.Input((8, 8, 4))
    y = layers.Conv2D(4, 3, padding="same", name="unit_conv")(inside)
    y = layers.BatchNormalization(name="unit_bn")(y)
    unit = keras.Model(inside, layers.Add(name="unit_add")([inside, y]))

    base_input = keras.Input((8, 8, 2))
    x = layers.Conv2D(4, 3, padding="same", name="base_stem")(base_input)
    for i in range(3):
        x = unit(x)
        x = layers.Conv2D(4, 3, padding="same", name=f"base_conv_{i}")(x)
        x = layers.Add(name=f"base_add_{i}")([x, unit(x)])
    base = keras.Model(base_input, layers.ReLU(name="base_out")(x), name="base")

    image = keras.Input((8, 8, 2), name="image")
    x = base(image, training=False)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.2, name="dropout")(x)
    outputs = layers.Dense(3, activation="softmax", name="head")(x)
    return keras.Model(image, outputs, name="nested_functional")


def nested_sequential():
    def block(filters, name):
        return keras.Sequential(
            [
                layers.Conv2D(filters, 3, padding="same", name=f"{name}_conv"),
                layers.BatchNormalization(name=f"{name}_bn"),
                layers.ReLU(name=f"{name}_relu"),
            ],
            name=name,
        )

    return keras.Sequential(
        [
            keras.Input((6, 6, 2), name="image"),
            block(4, "first"),
            keras.Sequential([block(4, "second"), block(6, "third")]),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(3, activation="softmax", name="head"),
        ],
        name="nested_sequential",
    )


def shared_layer():
    row = keras.Input((6,), name="row")
    shared = layers.Dense(8, activation="relu", name="shared")
    x = layers.Dense(8, name="first")(row)
    for i in range(3):
        x = layers.Add(name=f"add_{i}")([x, shared(shared(x))])
    outputs = layers.Dense(3, activation="softmax", name="head")(x)
    return keras.Model(row, outputs, name="shared_layer")


def siamese():
    """One nested model on both of two inputs."""
    inside = keras.Input((5,))
    y = layers.Dense(6, activation="relu", name="tower_0")(inside)
    tower = keras.Model(inside, layers.Dense(6, name="tower_1")(y), name="t")

    left, right = keras.Input((5,), name="left"), keras.Input((5,), name="r")
    x = layers.Subtract(name="difference")([tower(left), tower(right)])
    y = layers.Dense(6, activation="relu", name="block_dense")(x)
    x = layers.Multiply(name="block_gate")([x, y])
    outputs = layers.Dense(3, activation="softmax", name="head")(x)
    return keras.Model([left, right], outputs, name="siamese")


def operations():
    """`keras.ops` and Python operators between the layers."""
    row = keras.Input((6,), name="row")
    x = layers.Dense(8, name="dense_in")(row * 2.0 - 0.5)
    for i in range(3):
        y = layers.Dense(8, name=f"dense_{i}")(ops.relu(x))
        x = ops.tanh(x + y)
    outputs = layers.Dense(3, activation="softmax", name="head")(x)
    return keras.Model(row, outputs, name="operations")


def two_inputs_early():
    """A dict of two inputs that are joined before the first block."""
    inputs = {
        "text": keras.Input((5,), name="text"),
        "numbers": keras.Input((3,), name="numbers"),
    }
    parts = [
        layers.Dense(4, name=f"{name}_dense")(inputs[name]) for name in inputs
    ]
    x = layers.Concatenate(name="join")(parts)
    for i in range(2):
        y = layers.Dense(8, activation="gelu", name=f"block{i}_dense")(x)
        x = layers.Add(name=f"block{i}_add")([x, y])
    outputs = layers.Dense(3, activation="softmax", name="head")(x)
    return keras.Model(inputs, outputs, name="two_inputs_early")


def two_inputs_late():
    """The second input is alive until `join`: no cut in front of it."""
    image = keras.Input((6, 6, 2), name="image")
    numbers = keras.Input((3,), name="numbers")
    x = layers.Conv2D(4, 3, activation="relu", name="conv_0")(image)
    x = layers.Conv2D(4, 3, activation="relu", name="conv_1")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Concatenate(name="join")([x, numbers])
    x = layers.Dense(6, activation="relu", name="late_dense")(x)
    outputs = layers.Dense(3, activation="softmax", name="head")(x)
    return keras.Model([image, numbers], outputs, name="two_inputs_late")


@keras.saving.register_keras_serializable(package=PACKAGE)
class Positions(layers.Layer):
    """Adds a learned vector to every token, a class token first if wanted."""

    def __init__(self, class_token=False, **kwargs):
        super().__init__(**kwargs)
        self.class_token = class_token
        self.supports_masking = not class_token

    def build(self, shape):
        steps = shape[1] + self.class_token
        self.positions = self.add_weight((1, steps, shape[-1]), name="steps")
        if self.class_token:
            self.token = self.add_weight((1, 1, shape[-1]), name="token")

    def call(self, x):
        if self.class_token:
            token = ops.repeat(self.token, ops.shape(x)[0], axis=0)
            x = ops.concatenate([token, x], axis=1)
        return x + self.positions

    def get_config(self):
        return {**super().get_config(), "class_token": self.class_token}


def _encoder_block(x, name):
    y = layers.LayerNormalization(name=f"{name}_norm_0")(x)
    y = layers.MultiHeadAttention(2, 4, name=f"{name}_attention")(y, y)
    x = layers.Add(name=f"{name}_add_0")([x, y])
    y = layers.LayerNormalization(name=f"{name}_norm_1")(x)
    y = layers.Dense(12, activation="gelu", name=f"{name}_dense_0")(y)
    y = layers.Dense(8, name=f"{name}_dense_1")(y)
    return layers.Add(name=f"{name}_add_1")([x, y])


def transformer(mask_zero=False, name="transformer"):
    tokens = keras.Input((7,), dtype="int32", name="tokens")
    x = layers.Embedding(VOCABULARY, 8, mask_zero=mask_zero, name="embedding")(
        tokens
    )
    x = Positions(name="positions")(x)
    for i in range(2):
        x = _encoder_block(x, f"block{i}")
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    outputs = layers.Dense(3, activation="softmax", name="head")(x)
    return keras.Model(tokens, outputs, name=name)


def masked_transformer():
    """The mask of the padding is alive up to `pool`."""
    return transformer(mask_zero=True, name="masked_transformer")


def vision_transformer():
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 4, 4, name="patches")(image)
    x = layers.Reshape((4, 8), name="as_tokens")(x)
    x = Positions(class_token=True, name="positions")(x)
    for i in range(2):
        x = _encoder_block(x, f"block{i}")
    x = layers.LayerNormalization(name="norm")(x)
    outputs = layers.Dense(3, activation="softmax", name="head")(x[:, 0])
    return keras.Model(image, outputs, name="vision_transformer")


def tabular_mlp(head="softmax", units=3, name="tabular_mlp"):
    row = keras.Input((6,), name="row")
    x = row
    for i in range(3):
        x = layers.Dense(8, activation="relu", name=f"dense_{i}")(x)
    outputs = layers.Dense(units, activation=head, name="head")(x)
    return keras.Model(row, outputs, name=name)


def multilabel():
    return tabular_mlp("sigmoid", 4, "multilabel")


def logits():
    model = tabular_mlp(None, 3, "logits")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss=loss)
    return model


def regression():
    model = tabular_mlp(None, 2, "regression")
    model.compile("sgd", loss="mse")
    return model


def series_cnn():
    series = keras.Input((16, 2), name="series")
    x = series
    for i in range(3):
        x = layers.Conv1D(6, 3, activation="relu", name=f"conv_{i}")(x)
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    outputs = layers.Dense(3, activation="softmax", name="head")(x)
    return keras.Model(series, outputs, name="series_cnn")


def lstm_stack():
    series = keras.Input((6, 2), name="series")
    x = layers.LSTM(5, return_sequences=True, name="lstm_0")(series)
    x = layers.LSTM(5, return_sequences=True, name="lstm_1")(x)
    x = layers.LSTM(5, name="lstm_2")(x)
    outputs = layers.Dense(3, activation="softmax", name="head")(x)
    return keras.Model(series, outputs, name="lstm_stack")


ZOO = {
    "sequential_cnn": Entry(sequential_cnn, block="conv"),
    "residual_cnn": Entry(residual_cnn),
    "mixed_precision": Entry(mixed_precision, block="bnpool"),
    "dense_cnn": Entry(dense_cnn, block="bnpool"),
    "inception": Entry(inception, block="plain"),
    "nested_functional": Entry(nested_functional),
    "nested_sequential": Entry(nested_sequential),
    "shared_layer": Entry(shared_layer),
    "siamese": Entry(siamese),
    "operations": Entry(operations),
    "two_inputs_early": Entry(two_inputs_early),
    "two_inputs_late": Entry(two_inputs_late, exits=["join", "late_dense"]),
    "transformer": Entry(transformer, block="token"),
    "masked_transformer": Entry(masked_transformer, exits=1),
    "vision_transformer": Entry(vision_transformer, block="token"),
    "tabular_mlp": Entry(tabular_mlp),
    "multilabel": Entry(multilabel, units=4, task="multilabel"),
    "logits": Entry(logits),
    "regression": Entry(regression, units=2, task="regression"),
    "series_cnn": Entry(series_cnn),
    "lstm_stack": Entry(lstm_stack),
}
LIGHT = (
    "nested_functional",
    "shared_layer",
    "operations",
    "two_inputs_early",
    "multilabel",
    "logits",
)
NAMES = tuple(ZOO)
