"""Learned sample weights: values by hand, slopes by brute force, restoring."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_earlyexit as ee
from keras_earlyexit.objectives.l2w_trial import Trial, share_out

pytestmark = pytest.mark.backends_long

BACKEND = keras.backend.backend()
GENERATOR = np.random.default_rng(5)


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def build(objective="l2w", optimizer="sgd", **options):
    inputs = keras.Input((3,))
    x = layers.Dense(4, activation="tanh", name="first")(inputs)
    x = layers.Dense(4, activation="tanh", name="second")(x)
    outputs = layers.Dense(3, activation="softmax", name="head")(x)
    model = ee.add_exits(keras.Model(inputs, outputs), ["first"])
    if objective == "l2w":
        objective = ee.objectives.get(
            "l2w", **{"hidden_units": 7, "meta_samples": 16, **options}
        )
    model.compile(optimizer, objective)
    return model


@pytest.fixture(scope="module")
def data():
    x = GENERATOR.normal(size=(40, 3)).astype("float32")
    return x, x.argmax(axis=1)


def learned_weights(model):
    """Puts another weight network than the first one, whose weights are 1."""
    values = [
        0.5 * GENERATOR.normal(size=v.shape).astype("float32")
        for v in model.objective.state.variables
    ]
    for variable, value in zip(
        model.objective.state.variables, values, strict=True
    ):
        variable.assign(value)
    return values


def expected_weights(losses, values, epsilon):
    hidden_kernel, hidden_bias, kernel, bias = values
    hidden = np.maximum(losses @ hidden_kernel + hidden_bias, 0.0)
    raw = np.tanh(hidden @ kernel + bias)
    return 1.0 + epsilon * (raw - raw.mean())


def test_weights_and_loss():
    model = build(epsilon=0.4)
    logits = GENERATOR.normal(size=(2, 6, 3)).astype("float32")
    y = GENERATOR.integers(0, 3, 6)
    ce = -np.log(softmax(logits)[:, np.arange(6), y])
    halves = [np.full((6, 1), 0.5, "float32")]
    sample_weight = GENERATOR.uniform(0, 2, 6)

    given = list(softmax(logits))

    def loss(objective, labels=y, **options):
        parts = objective(labels, given, halves, [0.3, 1.0], **options)
        return ops.convert_to_numpy(parts["loss"]).item()

    # Without a model, and before it has learned, all weights are 1.
    plain = pytest.approx(ce.mean(axis=1).sum(), rel=1e-5)
    assert loss(ee.objectives.get("l2w")) == plain
    assert loss(model.objective) == plain
    values = learned_weights(model)
    weights = expected_weights(ce.T, values, 0.4)
    found = model.objective.weights(ops.convert_to_tensor(ce.T))
    np.testing.assert_allclose(
        ops.convert_to_numpy(found), weights, rtol=1e-4, atol=1e-5
    )
    assert weights.std() > 0.01
    assert weights.mean() == pytest.approx(1.0)
    expected = pytest.approx((weights * ce.T).sum(axis=1).mean(), rel=1e-4)
    assert loss(model.objective) == expected
    assert loss(model.objective, np.eye(3)[y]) == expected
    expected = (sample_weight * (weights * ce.T).sum(axis=1)).mean()
    found = loss(model.objective, sample_weight=sample_weight)
    assert found == pytest.approx(expected, rel=1e-4)


def test_shares():
    scores = np.array([[0.9, 0.1], [0.8, 0.9], [0.1, 0.2], [0.5, 0.3]])
    # Shares of 4/7, 2/7 and 1/7 of four samples: two, one and the rest.
    assert share_out(scores, 0.5).tolist() == [0, 0, 2, 1]
    # Shares of 1/3 each.
    assert share_out(np.repeat(scores, 3, axis=0)[:6], 1.0).tolist() == [
        *(0, 0, 2, 1, 1, 2)
    ]
    assert share_out(np.ones((8, 1)), 1.0).tolist() == [0] * 4 + [1] * 4


class Numbers:
    """The same network in float64, with gradients by central differences."""

    def __init__(self, model):
        found = {
            name: model.net.get_layer(name).get_weights()
            for name in ("first", "second", "head")
        }
        block = model.net.get_layer("exit_0").prediction_branch
        arrays = [
            *(a for name in ("first", "second", "head") for a in found[name]),
            *block.get_weights(),
        ]
        self.shapes = [a.shape for a in arrays]
        self.theta = np.concatenate([a.ravel() for a in arrays]).astype(float)

    def predictions(self, theta, x):
        ends = np.cumsum([np.prod(shape) for shape in self.shapes])
        parts = np.split(theta, ends[:-1])
        a, b, c, d, e, f, g, h = (
            part.reshape(shape)
            for part, shape in zip(parts, self.shapes, strict=True)
        )
        first = np.tanh(x @ a + b)
        final = softmax(np.tanh(first @ c + d) @ e + f)
        return np.stack([softmax(first @ g + h), final], axis=1)

    def losses(self, theta, x, y):
        return -np.log(self.predictions(theta, x)[np.arange(len(y)), :, y])

    def after_a_step(self, x, y, weights, rate):
        def loss(theta):
            return (weights * self.losses(theta, x, y)).sum() / len(y)

        gradient = [
            (loss(self.theta + h) - loss(self.theta - h)) / 2e-5
            for h in 1e-5 * np.eye(len(self.theta))
        ]
        return self.theta - rate * np.array(gradient)


def test_slopes_are_those_of_brute_force(data):
    model = build()
    values = learned_weights(model)
    x, y = data
    batch, judges = (x[:4], y[:4]), (x[4:12], y[4:12])
    rate = 0.7
    losses, slopes = Trial(model).slopes(batch, judges, rate)
    network = Numbers(model)
    expected = network.losses(network.theta, *batch)
    np.testing.assert_allclose(losses, expected, atol=1e-5)
    weights = expected_weights(expected, values, 0.3)
    theta = network.after_a_step(*batch, weights, rate)
    # Who leaves where does not change with a small change of weights.
    scores = network.predictions(theta, judges[0]).max(axis=-1)[:, :1]
    taken = share_out(scores, 0.75)
    assert set(taken) == {0, 1}

    def meta_loss(weights):
        theta = network.after_a_step(*batch, weights, rate)
        found = network.losses(theta, *judges)
        return sum(found[taken == j, j].mean() for j in range(2))

    expected = np.zeros((4, 2))
    for i, j in np.ndindex(4, 2):
        change = np.zeros((4, 2))
        change[i, j] = 1e-3
        expected[i, j] = meta_loss(weights + change)
        expected[i, j] -= meta_loss(weights - change)
    expected /= 2e-3
    scale = np.abs(expected).max()
    assert scale > 1e-3
    np.testing.assert_allclose(slopes, expected, atol=0.01 * scale)


def test_the_weight_network_follows_the_slopes():
    """The surrogate loss that it is trained by falls."""
    model = build(meta_learning_rate=0.01)
    losses = GENERATOR.uniform(0, 3, (8, 2)).astype("float32")
    slopes = np.where(losses > 1.5, 1.0, -1.0).astype("float32")
    before = [
        ops.convert_to_numpy(v).copy() for v in model.objective.state.variables
    ]
    for _ in range(30):
        model.objective.learn(losses, slopes)
    weights = ops.convert_to_numpy(model.objective.weights(losses))
    assert weights[slopes < 0].mean() > 1.05 > 0.95 > weights[slopes > 0].mean()
    assert weights.mean() == pytest.approx(1.0)
    for variable, old in zip(
        model.objective.state.variables, before, strict=True
    ):
        assert not np.array_equal(ops.convert_to_numpy(variable), old)


def with_batch_statistics():
    keras.utils.set_random_seed(2)
    inputs = keras.Input((8, 8, 1))
    x = layers.Flatten()(inputs)
    x = layers.Dense(6)(x)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU(name="early")(x)
    x = layers.Dropout(0.3, seed=4)(x)
    outputs = layers.Dense(10, activation="softmax")(x)
    return ee.add_exits(keras.Model(inputs, outputs), ["early"])


@pytest.fixture(scope="module")
def digits():
    x, y = ee.datasets.load("digits", "train")
    return x[:96].astype("float32") / 16, y[:96]


def test_a_trial_leaves_no_trace(digits):
    model = with_batch_statistics()
    model.compile(keras.optimizers.Adam(0.01), "l2w")
    x, y = digits
    before = [
        ops.convert_to_numpy(v).copy()
        for v in model.variables + model.optimizer.variables
    ]
    trial = Trial(model)
    found = [trial.slopes((x[:8], y[:8]), (x[8:], y[8:]), 0.1) for _ in "12"]
    after = model.variables + model.optimizer.variables
    for variable, old in zip(after, before, strict=True):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(variable), old, err_msg=variable.path
        )
    # The same dropout and batch statistics each time: the same slopes.
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    with pytest.raises(ValueError, match="integer labels"):
        trial.slopes((x[:8], y[:8]), (x[:8], np.zeros((8, 2))), 0.1)
    for variable, old in zip(after, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), old)


@pytest.mark.long
def test_the_rest_of_training_is_as_without_it(digits):
    """With no step of the weight network, or one of length 0, all is equal."""
    weights = []
    for every in (100, 2):
        model = with_batch_statistics()
        objective = ee.objectives.get(
            "l2w", meta_every=every, meta_learning_rate=0.0, meta_samples=32
        )
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), objective)
        model.fit(*digits, batch_size=16, epochs=1, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("regime", ["joint", "disjoint"])
def test_it_learns_while_the_model_trains(regime, digits):
    model = with_batch_statistics()
    objective = ee.objectives.get(
        "l2w", meta_every=2, meta_learning_rate=0.01, meta_samples=32
    )
    model.compile(keras.optimizers.SGD(0.1), objective, regime=regime)
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            network = self.model.objective.network
            seen.append(network.get_weights()[2].copy())

    model.fit(*digits, batch_size=16, epochs=2, callbacks=[Watch()], verbose=0)
    kernels = [np.zeros_like(seen[0]), *seen]
    moved = [
        not np.array_equal(one, other)
        for one, other in zip(kernels[:-1], kernels[1:], strict=True)
    ]
    assert moved == [False, True] * 6
    for variable, value in zip(
        model.objective.state.variables,
        model.objective.network.get_weights(),
        strict=True,
    ):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), value)
    # The training step sees what has been learned.
    logs = model.evaluate(*digits, verbose=0, batch_size=96, return_dict=True)
    outputs = model.net(digits[0])
    ce = [
        -np.log(ops.convert_to_numpy(outputs[name])[np.arange(96), digits[1]])
        for name in model.exit_names
    ]
    ce = np.stack(ce, axis=1)
    weights = expected_weights(ce, model.objective.network.get_weights(), 0.3)
    assert weights.std() > 1e-3
    expected = (weights * ce).sum(axis=1).mean()
    assert logs["prediction_loss"] == pytest.approx(expected, rel=1e-3)


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    @property
    def num_batches(self):
        return 3

    def __getitem__(self, index):
        part = slice(8 * index, 8 * index + 8)
        return self.x[part], self.y[part]


def test_where_samples_are_drawn_from(data):
    x, y = data
    model = build(meta_every=1)
    (callback,) = model.objective.callbacks(model)
    callback.draw_from(x, y, validation_split=0.5)
    for _ in range(5):
        (some_x, some_y), (other_x, other_y) = next(callback._pairs)
        drawn = np.concatenate([some_x, other_x])
        assert len(some_y) == len(other_y) == 8
        rows = [np.flatnonzero((x == row).all(axis=1)).item() for row in drawn]
        assert len(set(rows)) == 16 and max(rows) < 20
        assert y[rows].tolist() == [*some_y, *other_y]
    callback.draw_from(Batches(x, y), None)
    (some_x, some_y), (_, other_y) = next(callback._pairs)
    assert len(some_y) == len(other_y) == 4
    model.fit(Batches(x, y), epochs=1, verbose=0)
    state = model.objective.state.variables
    assert np.abs(ops.convert_to_numpy(state[2])).max() > 0


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.data feeds TensorFlow")
def test_a_dataset(data):
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices(data).batch(10)
    model = build(meta_every=2)
    model.fit(dataset, epochs=1, verbose=0)
    kernel = ops.convert_to_numpy(model.objective.state.kernel)
    assert np.abs(kernel).max() > 0
    with pytest.raises(ValueError, match="2 samples in a batch.*Received: 1"):
        model.fit(dataset.unbatch().batch(1), epochs=1, verbose=0)


def test_data_that_cannot_be_drawn_from(data):
    model = build()
    batches = ((data[0][:8], data[1][:8]) for _ in range(4))
    with pytest.raises(ValueError, match="a generator, whose batches come"):
        model.fit(batches, verbose=0)
    with pytest.raises(ValueError, match="2 training samples.*Received: 1"):
        model.fit(data[0][:1], data[1][:1], verbose=0)


@pytest.mark.parametrize(
    "options",
    [
        {"epsilon": -0.1},
        {"epsilon": 1.5},
        {"epsilon": float("nan")},
        {"meta_every": 0},
        {"share_ratio": 0.0},
        {"hidden_units": 0},
        {"meta_samples": 1},
        {"meta_learning_rate": -1.0},
    ],
)
def test_bad_options(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"`{name}` to be at least"):
        ee.objectives.get("l2w", **options)


def test_a_model_without_probabilities():
    inputs = keras.Input((4,))
    x = layers.Dense(8, name="first")(inputs)
    plain = keras.Model(inputs, layers.Dense(2)(x))
    model = ee.add_exits(plain, ["first"], task="regression")
    with pytest.raises(ValueError, match="classifier for objective 'l2w'"):
        model.compile("sgd", "l2w")
