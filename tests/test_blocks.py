"""Exit blocks: one contract for all kinds, and what each kind computes."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from zoo import ZOO, as_numpy

import keras_earlyexit as ee
from keras_earlyexit import blocks
from keras_earlyexit.tasks import Head

SHAPES = {
    "vector": (5,),
    "sequence": (7, 5),
    "image": (6, 4, 5),
    "volume": (4, 3, 2, 5),
}
TAKES = {
    "pool": SHAPES,
    "bnpool": SHAPES,
    "plain": SHAPES,
    "conv": ("sequence", "image", "volume"),
    "token": ("sequence",),
    "dense": ("sequence", "image", "volume"),
}
EVERY = [(kind, shape) for kind in blocks.KINDS for shape in TAKES[kind]]
if keras.backend.backend() != "tensorflow":
    EVERY = [(kind, "sequence") for kind in blocks.KINDS]


def features(shape, rows=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(1, 2, (rows, *SHAPES[shape])).astype("float32")


def check_exit_block(block, shape):
    """The contract of an exit block: shapes, config, types, gradients."""
    x = features(shape)
    feature = keras.Input(x.shape[1:])
    symbolic = block(feature)
    prediction, confidence = block(x)
    for found, expected in zip((prediction, confidence), symbolic, strict=True):
        assert tuple(found.shape)[1:] == expected.shape[1:]
        assert keras.backend.standardize_dtype(found.dtype) == expected.dtype
        assert expected.dtype == "float32"
    answer = (block.units,)
    if block.kind == "dense":
        answer = (*(block.positions or x.shape[1:-1]), block.units)
    assert tuple(prediction.shape) == (3, *answer)
    assert tuple(confidence.shape) == (3, 1)
    shapes = block.compute_output_shape((None, *x.shape[1:]))
    assert shapes == ((None, *answer), (None, 1))

    again = ee.ExitBlock.from_config(block.get_config())
    assert again.get_config() == block.get_config()
    again(feature)
    again.set_weights(block.get_weights())
    for one, other in zip(again(x), (prediction, confidence), strict=True):
        np.testing.assert_array_equal(as_numpy(one), as_numpy(other))

    # Each weight that can be trained is.
    model = keras.Model(feature, list(symbolic))
    before = [as_numpy(weight) for weight in model.trainable_weights]
    model.compile("sgd", loss=["mse", "mse"])
    targets = [
        np.full(tensor.shape, 0.3, "float32")
        for tensor in (prediction, confidence)
    ]
    model.train_on_batch(x, targets)
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert np.abs(as_numpy(weight) - old).max() > 0, weight.path


@pytest.mark.backends
@pytest.mark.parametrize("kind, shape", EVERY)
def test_contract(kind, shape):
    check_exit_block(ee.ExitBlock(4, kind), shape)


@pytest.mark.backends
def test_contract_of_a_class_token():
    check_exit_block(ee.ExitBlock(4, "token", token="first"), "sequence")


@pytest.mark.backends
@pytest.mark.parametrize(
    "shape, positions",
    [("sequence", (9,)), ("image", (12, 3)), ("volume", (2, 5, 2))],
)
def test_contract_of_an_answer_at_other_positions(shape, positions):
    check_exit_block(ee.ExitBlock(4, "dense", positions=positions), shape)


@pytest.mark.backends
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "linear"])
def test_prediction_is_a_dense_layer_on_the_mean(activation):
    block = ee.ExitBlock(4, activation=activation)
    x = features("image")
    prediction, confidence = map(as_numpy, block(x))
    kernel, bias, w, b = map(as_numpy, block.weights)
    mean = x.mean(axis=(1, 2))
    logits = mean @ kernel + bias
    expected = {
        "linear": logits,
        "sigmoid": 1 / (1 + np.exp(-logits)),
        "softmax": np.exp(logits) / np.exp(logits).sum(1, keepdims=True),
    }[activation]
    np.testing.assert_allclose(prediction, expected, atol=1e-5)
    np.testing.assert_allclose(
        confidence, 1 / (1 + np.exp(-(mean @ w + b))), atol=1e-5
    )


def test_parameters_of_a_pool_block_are_few():
    block = ee.ExitBlock(10)
    block.build((None, 8, 8, 16))
    assert block.count_params() == (16 + 1) * (10 + 1)


def vector_of(block, x, **options):
    """The vector that both branches read, by a branch that hands it on."""
    if not block.built:
        block.build((None, *x.shape[1:]))
        block.prediction_branch.kernel.assign(np.eye(block.units))
    return as_numpy(block(x, **options)[0])


@pytest.mark.parametrize(
    "kind, shape, token, expected",
    [
        ("pool", "vector", "mean", lambda x: x),
        ("pool", "sequence", "mean", lambda x: x.mean(1)),
        ("pool", "volume", "mean", lambda x: x.mean((1, 2, 3))),
        ("plain", "sequence", "mean", lambda x: x.reshape(3, -1)),
        ("token", "sequence", "mean", lambda x: normalized(x).mean(1)),
        ("token", "sequence", "first", lambda x: normalized(x)[:, 0]),
    ],
)
def test_vector_of_each_kind(kind, shape, token, expected):
    x = features(shape)
    wanted = expected(x)
    block = ee.ExitBlock(
        wanted.shape[1], kind, activation="linear", token=token
    )
    np.testing.assert_allclose(vector_of(block, x), wanted, atol=1e-5)


def normalized(x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


@pytest.mark.backends
def test_bnpool_normalizes_each_channel_over_the_batch_when_training():
    x = features("image", rows=64)
    block = ee.ExitBlock(5, "bnpool", activation="linear")
    before = vector_of(block, x)
    np.testing.assert_allclose(before, x.mean((1, 2)), rtol=0.01)
    trained = vector_of(block, x, training=True)
    np.testing.assert_allclose(trained.mean(0), 0, atol=1e-4)
    # Its moving mean has begun to follow.
    assert np.abs(vector_of(block, x) - before).max() > 1e-3


def test_conv_block_halves_the_feature_and_keeps_its_channels():
    block = ee.ExitBlock(4, "conv")
    block.build((None, 8, 6, 5))
    convolution = block.reduction[0]
    assert tuple(convolution.kernel.shape) == (3, 3, 5, 5)
    assert convolution.compute_output_shape((None, 8, 6, 5)) == (None, 4, 3, 5)
    assert not convolution.use_bias


def interpolated(x, positions):
    """Linear interpolation along each axis, pixels being areas."""
    for axis, size in enumerate(positions, 1):
        found = x.shape[axis]
        at = (np.arange(size) + 0.5) * found / size - 0.5
        at = at.clip(0, found - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, found - 1)
        share = (at - low).reshape(-1, *[1] * (x.ndim - axis - 1))
        x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
    return x


@pytest.mark.backends
@pytest.mark.parametrize(
    "shape, positions",
    [
        ("sequence", None),
        ("sequence", (14,)),
        ("sequence", (5,)),
        ("image", (6, 4)),
        ("image", (24, 16)),
        ("image", (7, 9)),
        ("image", (3, 2)),
        ("image", (2, 8)),
        ("volume", (8, 6, 4)),
        ("volume", (2, 3, 1)),
    ],
)
def test_dense_block_answers_at_every_position(shape, positions):
    x = features(shape)
    block = ee.ExitBlock(4, "dense", positions=positions)
    prediction, confidence = map(as_numpy, block(x))
    kernel, bias, w, b = map(as_numpy, block.weights)
    logits = interpolated(x @ kernel + bias, positions or x.shape[1:-1])
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(prediction, expected, atol=1e-5)
    mean = x.mean(axis=tuple(range(1, x.ndim - 1)))
    np.testing.assert_allclose(
        confidence, 1 / (1 + np.exp(-(mean @ w + b))), atol=1e-5
    )


def test_dense_block_takes_channels_first():
    x = features("image")
    last = ee.ExitBlock(3, "dense", positions=(12, 8))
    first = ee.ExitBlock(
        3, "dense", positions=(12, 8), data_format="channels_first"
    )
    expected = last(x)
    first.build((None, 5, 6, 4))
    first.set_weights(last.get_weights())
    assert first(keras.Input((5, 6, 4)))[0].shape == (None, 12, 8, 3)
    for one, other in zip(first(np.moveaxis(x, -1, 1)), expected, strict=True):
        np.testing.assert_allclose(as_numpy(one), as_numpy(other), atol=1e-6)


@pytest.mark.parametrize(
    "feature, positions, branch_positions",
    [
        ((8, 8, 6), None, 64),
        ((4, 4, 6), (16, 16), 16),
        ((16, 16, 6), (4, 4), 16),
        ((10, 6), (40,), 10),
        ((2, 3, 4, 6), (4, 6, 8), 24),
        ((4, 6, 8, 6), (2, 3, 4), 24),
    ],
)
def test_dense_block_is_counted_where_it_has_least_to_do(
    feature, positions, branch_positions
):
    inputs = keras.Input(feature)
    block = ee.ExitBlock(5, "dense", positions=positions, name="exit_0")
    table = ee.cost.count(keras.Model(inputs, block(inputs)))
    assert table.reliable
    assert table.macs == branch_positions * 6 * 5 + 6
    assert table.params == (6 + 1) * (5 + 1)


def test_open_sizes_are_answered_as_they_come():
    tokens = keras.Input((None, 5))
    model = keras.Model(tokens, ee.ExitBlock(4, "dense")(tokens))
    assert model.output[0].shape == (None, None, 4)
    for steps in (3, 8):
        x = np.zeros((2, steps, 5), "float32")
        assert tuple(model(x)[0].shape) == (2, steps, 4)
    with pytest.raises(ValueError, match="size is open.*fixed shape"):
        ee.ExitBlock(4, "dense", positions=(6,))(tokens)


def test_channels_may_come_first():
    x = features("image")
    block = ee.ExitBlock(6, activation="linear", data_format="channels_first")
    wanted = x.mean((2, 3))
    np.testing.assert_allclose(vector_of(block, x), wanted, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("kind", blocks.KINDS)
def test_answers_are_float32_under_mixed_precision(kind, policy):
    keras.config.set_dtype_policy(policy)
    try:
        block = ee.ExitBlock(4, kind)
        feature = layers.Activation("relu")(keras.Input((7, 5)))
        assert feature.dtype == policy.removeprefix("mixed_")
        assert [tensor.dtype for tensor in block(feature)] == ["float32"] * 2
        answers = block(ops.cast(features("sequence"), feature.dtype))
    finally:
        keras.config.set_dtype_policy("float32")
    for answer in answers:
        assert keras.backend.standardize_dtype(answer.dtype) == "float32"
    assert block.prediction_branch.kernel.dtype == "float32"


def test_answers_are_float64_where_all_is():
    block = ee.ExitBlock(4, dtype="float64")
    assert [x.dtype for x in block(keras.Input((5,), dtype="float64"))] == [
        "float64"
    ] * 2


@pytest.mark.backends
def test_a_mask_that_reaches_a_block_makes_no_noise():
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 5, mask_zero=True)(tokens)
    model = keras.Model(tokens, ee.ExitBlock(2)(x))
    rows = np.array([[1, 2, 0, 0, 0, 0], [3, 4, 5, 6, 7, 8]])
    prediction, confidence = model(rows)
    assert getattr(prediction, "_keras_mask", None) is None
    # Padding is left out of the mean.
    shorter = model(np.array([[1, 2, 0, 0, 0, 0]] * 2))
    np.testing.assert_allclose(
        as_numpy(shorter[0])[0], as_numpy(prediction)[0], atol=1e-6
    )


# Blocks of a model.


def exits_of(block, name="residual_cnn"):
    return ZOO[name].add_exits(block=block)


@pytest.mark.parametrize("kind", blocks.KINDS[:4])
def test_kind_is_given_by_name(kind):
    model = exits_of(kind)
    for i in range(2):
        assert model.net.get_layer(f"exit_{i}").kind == kind


def test_an_exit_block_is_copied_for_every_exit():
    mine = ee.ExitBlock(99, "bnpool", activation="linear", name="mine")
    model = exits_of(mine)
    found = [model.net.get_layer(f"exit_{i}") for i in range(2)]
    assert not mine.built
    assert [block.units for block in found] == [3, 3]
    assert [block.kind for block in found] == ["bnpool"] * 2
    assert found[0].activation is keras.activations.softmax
    weights = {id(weight) for block in found for weight in block.weights}
    assert len(weights) == 2 * len(found[0].weights)


def test_a_callable_may_return_the_vector():
    def wide(feature):
        x = layers.Dense(7, activation="relu")(feature)
        return layers.GlobalMaxPooling2D()(x)

    model = exits_of(wide)
    block = model.net.get_layer("exit_1")
    assert tuple(block.prediction_branch.kernel.shape) == (7, 3)
    x, _ = ZOO["residual_cnn"].batch(2)
    answers = as_numpy(model(x)["exit_1"])
    np.testing.assert_allclose(answers.sum(1), 1, atol=1e-5)
    calls = [call.name for call in model._exits.blocks[1]]
    assert calls[-1] == "exit_1" and len(calls) == 3


def test_a_callable_may_return_prediction_and_confidence():
    def own(feature):
        x = layers.GlobalAveragePooling2D()(feature)
        return layers.Dense(3, "softmax")(x), layers.Dense(1, "sigmoid")(x)

    model = exits_of(own)
    x, _ = ZOO["residual_cnn"].batch(2)
    outputs = model(x)
    assert tuple(outputs["exit_0"].shape) == (2, 3)
    assert tuple(outputs["exit_0_confidence"].shape) == (2, 1)
    result = model.stages[0](x)
    np.testing.assert_allclose(
        as_numpy(result["prediction"]), as_numpy(outputs["exit_0"]), atol=1e-6
    )


def test_a_callable_may_be_a_model():
    def small_model(feature):
        return keras.Sequential(
            [layers.GlobalMaxPooling2D(), layers.Dense(6, "relu")]
        )(feature)

    model = exits_of(small_model)
    assert model.net.get_layer("exit_0").units == 3


@pytest.mark.parametrize(
    "block, error, message",
    [
        ("poool", ValueError, "pool, bnpool, plain.*'poool' .*str"),
        (None, TypeError, "an ExitBlock, or a callable.*None .*NoneType"),
        ("token", ValueError, r"'exit_0'.*\(batch, tokens, ch.*4 axes"),
        (ee.ExitBlock, TypeError, "or a callable.*ExitBlock.*of type type"),
        (lambda x: x, ValueError, r"a vector of shape.*\(None, 8, 8, 4\)"),
        (lambda x: None, ValueError, "a vector of shape.*None .*NoneType"),
        (
            lambda x: [layers.Dense(5)(layers.Flatten()(x))] * 2,
            ValueError,
            r"\(batch, 3\) and a confidence.*\(None, 5\).*'exit_0'",
        ),
        (
            lambda x: [layers.Dense(3)(layers.Flatten()(x))] * 3,
            ValueError,
            r"or a tuple \(prediction, confidence\)\. Received: \[<Keras",
        ),
        (
            lambda x: layers.Flatten(name="mine")(x),
            ValueError,
            'names that the model.*"mine" is used 2 times.*Leave out `name=`',
        ),
    ],
)
def test_blocks_that_do_not_fit_are_refused(block, error, message):
    with pytest.raises(error, match=message):
        exits_of(block)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`kind`.*kind=3 .*int"):
        ee.ExitBlock(4, kind=3)
    with pytest.raises(ValueError, match="'mean' or 'first'.*'last'"):
        ee.ExitBlock(4, "token", token="last")
    with pytest.raises(ValueError, match="'conv' expects.*2 axes"):
        ee.ExitBlock(4, "conv")(keras.Input((5,)))
    with pytest.raises(ValueError, match="'dense' expects.*2 axes"):
        ee.ExitBlock(4, "dense")(keras.Input((5,)))
    with pytest.raises(ValueError, match=r"\(8,\).*as many axes.*reshapes"):
        ee.ExitBlock(4, "dense", positions=(8,))(keras.Input((2, 4, 5)))
    for positions in (8, (8, 0), (8.0,), "ab"):
        with pytest.raises(ValueError, match="`positions`.*Received: pos"):
            ee.ExitBlock(4, "dense", positions=positions)
    with pytest.raises(ValueError, match="'plain' cannot take.*'pool'"):
        ee.ExitBlock(4, "plain")(keras.Input((None, 5)))


def test_head_is_given_to_every_kind_of_block():
    head = Head(2, "sigmoid", "multilabel")
    feature = keras.Input((4, 4, 3))
    for block in ("plain", ee.ExitBlock(1), lambda x: x[:, 0, 0]):
        prediction, confidence = blocks.attach(block, feature, head, "exit_0")
        assert prediction.shape == (None, 2)
        assert confidence.shape == (None, 1)
