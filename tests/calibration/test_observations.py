"""One pass's figures against what the model itself says, and their edges.

The model has random weights: the figures must agree whatever they are.
"""

import keras
import numpy as np
import pytest

import keras_earlyexit as ee
from keras_earlyexit.calibration import Observations, _reading, observe

pytestmark = pytest.mark.backends_long


def pixels(split):
    x, y = ee.datasets.load("digits", split)
    return x.astype("float32") / 16, y


def small_net(units=10, activation="softmax"):
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(inputs)
    x = keras.layers.Conv2D(16, 3, activation="relu", name="middle")(x)
    x = keras.layers.Dense(64, activation="relu")(keras.layers.Flatten()(x))
    outputs = keras.layers.Dense(units, activation=activation)(x)
    return keras.Model(inputs, outputs)


@pytest.fixture(scope="session")
def model():
    keras.utils.set_random_seed(0)
    net = small_net()
    model = ee.add_exits(net, [net.layers[1].name, "middle"])
    model.policy = "max_probability"
    model.compile(keras.optimizers.Adam(5e-3), objective="eenet_v0")
    return model


@pytest.fixture(scope="session")
def seen(model):
    return observe(model, *pixels("test"))


def gaps(scores, count):
    """Thresholds all over the scores, out of reach of rounding.

    The middle of the widest gap in each of some equal parts of the scores.
    """
    found = []
    for part in np.array_split(np.unique(scores), count):
        widest = np.argmax(np.diff(part))
        found.append(float(part[widest] + part[widest + 1]) / 2)
    return found


def routed(model, x, threshold):
    before = model.policy.threshold
    model.policy.threshold = threshold
    try:
        return model.predict_exits(x)
    finally:
        model.policy.threshold = before


def test_routing_is_that_of_the_model(model, seen):
    x, _ = pixels("test")
    thresholds = [*gaps(seen.scores, 4), -np.inf, np.inf]
    thresholds.append([gaps(s, 3)[1] for s in seen.scores.T])
    for threshold in thresholds:
        result = routed(model, x, threshold)
        np.testing.assert_array_equal(
            seen.exit_index(threshold), result.exit_index
        )
        assert abs(seen.mean_cost(threshold) - result.mean_cost) < 1e-6
        np.testing.assert_allclose(
            seen.exit_shares(threshold), result.exit_shares(3), atol=1e-12
        )


def test_figures_are_those_of_evaluate(model, seen):
    threshold = gaps(seen.scores, 3)[1]
    before = model.policy.threshold
    model.policy.threshold = threshold
    found = model.evaluate(*pixels("test"), verbose=0, return_dict=True)
    model.policy.threshold = before
    assert seen.accuracy(threshold) == pytest.approx(
        found["routed_accuracy"], abs=1e-6
    )
    assert seen.mean_cost(threshold) == pytest.approx(
        found["mean_cost"], abs=1e-6
    )
    np.testing.assert_allclose(
        seen.exit_accuracies(),
        [found[f"{name}_accuracy"] for name in model.exit_names],
        atol=1e-6,
    )


def test_what_is_seen_are_the_outputs_of_the_network(model, seen):
    x, y = pixels("test")
    outputs = model(x[:50])
    for prediction, name in zip(
        seen.predictions, model.exit_names, strict=True
    ):
        assert prediction.shape == (400, 10)
        np.testing.assert_allclose(
            prediction[:50],
            keras.ops.convert_to_numpy(outputs[name]),
            atol=1e-5,
        )
    assert seen.scores.shape == (400, 2)
    assert seen.policy_name == "max_probability"
    assert seen.exit_names == ("exit_0", "exit_1", "final")
    np.testing.assert_array_equal(seen.labels, y)
    np.testing.assert_array_equal(seen.relative_costs, model.relative_costs)
    assert "400 samples with labels" in repr(seen)


def test_grid_agrees_with_single_thresholds(seen):
    thresholds = [np.inf, 0.9, float(seen.scores[0, 0]), 0.3, -np.inf]
    grid = seen.exit_index_grid(thresholds)
    assert grid.shape == (400, 5)
    for column, threshold in zip(grid.T, thresholds, strict=True):
        np.testing.assert_array_equal(column, seen.exit_index(threshold))


def test_grid_takes_a_threshold_for_each_exit(seen):
    generator = np.random.default_rng(0)
    rows = generator.choice(seen.scores.reshape(-1), (20, 2))
    rows = np.concatenate([rows, [[np.inf, -np.inf], [-np.inf, np.inf]]])
    grid = seen.exit_index_grid(rows)
    for column, row in zip(grid.T, rows, strict=True):
        np.testing.assert_array_equal(column, seen.exit_index(row))
    for bad in (np.zeros((4, 3)), [], [0.1, np.nan]):
        with pytest.raises(ValueError, match="at least one threshold"):
            seen.exit_index_grid(bad)


def test_curve_runs_from_everybody_to_nobody(seen):
    thresholds, costs, accuracies = seen.curve(num=20)
    assert thresholds[0] == -np.inf and thresholds[-1] == np.inf
    assert len(thresholds) <= 22 and np.all(np.diff(thresholds) > 0)
    assert np.all(np.diff(costs) >= 0)
    np.testing.assert_allclose(costs[[0, -1]], seen.relative_costs[[0, -1]])
    ends = seen.exit_accuracies()[[0, -1]]
    np.testing.assert_allclose(accuracies[[0, -1]], ends)
    middle = float(thresholds[10])
    assert costs[10] == pytest.approx(seen.mean_cost(middle))
    assert accuracies[10] == pytest.approx(seen.accuracy(middle))


def test_score_at_the_threshold_stays():
    head = ee.tasks.Head(2, "softmax", "classification")
    seen = Observations(
        scores=np.float32([[0.5, 0.9], [0.6, 0.1], [0.2, 0.5]]),
        predictions=[np.eye(2)[[k, 1, 0]] for k in (0, 1, 1)],
        labels=np.array([1, 1, 1]),
        relative_costs=np.array([0.25, 0.5, 1.0]),
        exit_names=("exit_0", "exit_1", "final"),
        head=head,
    )
    np.testing.assert_array_equal(seen.exit_index(0.5), [1, 0, 2])
    np.testing.assert_array_equal(seen.exit_index([0.1, np.inf]), [0, 0, 0])
    np.testing.assert_array_equal(seen.exit_index([0.6, 0.4]), [1, 2, 1])
    assert seen.mean_cost(0.5) == pytest.approx(1.75 / 3)
    assert seen.accuracy(0.5) == pytest.approx(2 / 3)
    np.testing.assert_allclose(seen.exit_accuracies(), [1 / 3, 2 / 3, 2 / 3])
    assert len(seen.take([0, 2])) == 2
    assert seen.take(slice(1)).accuracy(0.5) == 1.0


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 4

    def __getitem__(self, index):
        rows = slice(100 * index, 100 * index + 100)
        return self.x[rows], self.y[rows]


def shuffled_dataset(x, y):
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((x, y[:, None]))
    return data.shuffle(400).batch(150)


@pytest.mark.parametrize(
    "make",
    [
        Batches,
        shuffled_dataset,
        lambda x, y: ((x[k::4], y[k::4]) for k in range(4)),
    ],
    ids=["PyDataset", "tf.data", "generator"],
)
def test_batches_bring_their_labels(model, seen, make):
    found = observe(model, make(*pixels("test")))
    assert len(found) == 400
    np.testing.assert_allclose(found.exit_accuracies(), seen.exit_accuracies())
    threshold = gaps(seen.scores, 3)[1]
    assert found.mean_cost(threshold) == pytest.approx(
        seen.mean_cost(threshold)
    )


@pytest.mark.parametrize(
    "form", [lambda y: y[:, None], lambda y: np.eye(10)[y]]
)
def test_labels_come_in_every_form(model, form):
    x, y = pixels("test")
    found = observe(model, x[:30], form(y[:30]), batch_size=16)
    np.testing.assert_array_equal(found.labels, y[:30])


def test_logits_answer_alike():
    net = small_net(activation=None)
    model = ee.add_exits(net, ["middle"], task="classification")
    model.policy = "max_probability"
    x, y = pixels("test")
    seen = observe(model, x, y)
    threshold = gaps(seen.scores, 3)[1]
    result = routed(model, x, threshold)
    np.testing.assert_array_equal(seen.exit_index(threshold), result.exit_index)
    right = result.predictions.argmax(axis=1) == y
    assert seen.accuracy(threshold) == pytest.approx(right.mean())


def test_multilabel_accuracy_is_the_mean_over_labels():
    model = ee.add_exits(small_net(3, "sigmoid"), ["middle"])
    model.policy = "max_probability"
    model.compile("adam", objective="eenet_v0")
    x, y = pixels("test")
    y = np.stack([y % 2, y > 4, y == 0], axis=1).astype("float32")
    seen = observe(model, x, y)
    model.policy.threshold = threshold = gaps(seen.scores, 3)[1]
    found = model.evaluate(x, y, verbose=0, return_dict=True)
    assert seen.metric_name == "accuracy"
    assert seen.accuracy(threshold) == pytest.approx(
        found["routed_accuracy"], abs=1e-6
    )
    assert seen.exit_accuracies()[0] == pytest.approx(
        found["exit_0_accuracy"], abs=1e-6
    )


def test_values_have_a_mean_absolute_error():
    net = small_net(1, None)
    model = ee.add_exits(net, ["middle"], task="regression")
    x, y = pixels("test")
    seen = observe(model, x, y.astype("float32"))
    threshold = gaps(seen.scores, 3)[1]
    result = routed(model, x, threshold)
    error = np.abs(result.predictions[:, 0] - y).mean()
    assert seen.metric_name == "mean_absolute_error"
    assert seen.mean_absolute_error(threshold) == pytest.approx(error, rel=1e-5)
    assert seen.exit_metrics().shape == (2,)
    with pytest.raises(ValueError, match="Use `mean_absolute_error`"):
        seen.accuracy(threshold)


def test_positions_are_averaged():
    rng = np.random.default_rng(0)
    predictions = [rng.random((5, 4, 3), "float32") for _ in range(2)]
    labels = rng.integers(0, 3, (5, 4))
    seen = Observations(
        scores=rng.random((5, 1), "float32"),
        predictions=predictions,
        labels=labels,
        relative_costs=np.array([0.5, 1.0]),
        exit_names=("exit_0", "final"),
        head=ee.tasks.Head(3, "softmax", "classification"),
    )
    right = [(p.argmax(axis=-1) == labels).mean() for p in predictions]
    np.testing.assert_allclose(seen.exit_accuracies(), right)


def test_without_labels_only_costs_are_known(model):
    x, _ = pixels("test")
    seen = observe(model, x[:20])
    assert seen.labels is None and 0 < seen.mean_cost(0.5) < 2
    with pytest.raises(ValueError, match="observations with labels"):
        seen.accuracy(0.5)
    with pytest.raises(ValueError, match="observations with labels"):
        seen.curve()


def test_bad_thresholds_are_refused(seen):
    for bad in (float("nan"), [0.5], [0.1, 0.2, 0.3]):
        with pytest.raises(ValueError, match="Expected a number as threshold"):
            seen.exit_index(bad)


def endless(x, y):
    return shuffled_dataset(x, y).repeat(), None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda x, y: (x[:0], y[:0]), "at least one sample"),
        (lambda x, y: (x, y[:-1]), "one label for each sample"),
        (lambda x, y: (x, y + 1), "integer labels from 0 to 9"),
        (lambda x, y: (x, np.zeros((400, 7))), "integer labels of shape"),
        (lambda x, y: (x * np.nan, y), "finite inputs"),
        (lambda x, y: (x[:, :4], y), "of shape"),
        (lambda x, y: (Batches(x, y), y), "labels inside the data"),
        (endless, "data that ends"),
    ],
)
def test_bad_data_is_refused(model, data, message):
    with pytest.raises(ValueError, match=message):
        observe(model, *data(*pixels("test")))


def test_weights_that_are_nan_are_refused():
    model = ee.add_exits(small_net(), ["middle"])
    weights = model.get_weights()
    model.set_weights([np.full_like(part, np.nan) for part in weights])
    with pytest.raises(ValueError, match="the answers of 400 samples are NaN"):
        observe(model, *pixels("test"))


def test_a_model_without_exits_is_refused(model):
    with pytest.raises(TypeError, match="Expected a model with exits"):
        observe(ee.strip_exits(model), pixels("test")[0])


def test_progress_bar_shows_when_asked(model, capsys, monkeypatch):
    x, _ = pixels("test")
    # Nobody watches a file, a pipe or a notebook.
    for verbose, after_s in ((0, 0.0), ("auto", 0.0)):
        monkeypatch.setattr(_reading, "_BAR_AFTER_S", after_s)
        observe(model, x, batch_size=100, verbose=verbose)
        assert capsys.readouterr().out == ""
    monkeypatch.setattr(_reading, "_is_watched", lambda: True)
    monkeypatch.setattr(_reading, "_BAR_AFTER_S", 1e9)
    observe(model, x, batch_size=100, verbose="auto")
    assert capsys.readouterr().out == ""
    for verbose, after_s in ((1, 1e9), ("auto", 0.0)):
        monkeypatch.setattr(_reading, "_BAR_AFTER_S", after_s)
        observe(model, x, batch_size=100, verbose=verbose)
        assert "4/4" in capsys.readouterr().out
