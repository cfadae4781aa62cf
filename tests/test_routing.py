"""Routing: work is really skipped, and the answers are the right ones."""

import concurrent.futures
import itertools

import keras
import numpy as np
import pytest
from counting import CountRows, counted
from keras import layers, ops

import keras_earlyexit as ee
from keras_earlyexit.engines.buckets import bucket
from keras_earlyexit.engines.graph import GraphEngine

pytestmark = [
    pytest.mark.backends,
    # The counting layer has no cost that could be counted.
    pytest.mark.filterwarnings("ignore:The cost of count_0"),
]

BACKEND = keras.backend.backend()


def counting_model():
    """Three blocks of dense layers; each counts the rows that enter it."""
    inputs = keras.Input((6,), name="row")
    x = inputs
    for i in range(3):
        x = CountRows(name=f"count_{i}")(x)
        x = layers.Dense(8, activation="tanh", name=f"dense_{i}")(x)
    outputs = layers.Dense(4, activation="softmax", name="head")(x)
    return keras.Model(inputs, outputs)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    model = ee.add_exits(
        counting_model(),
        exits=["dense_0", "dense_1"],
        policy="max_probability",
    )
    model.compile("sgd", objective="eenet_v0")
    return model


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(70, 6)).astype("float32")
    return x, generator.integers(0, 4, 70)


@pytest.fixture
def thresholds(model, data):
    """Thresholds by which about a third leaves at each exit."""
    outputs = all_outputs(model, data[0])
    first, second = (outputs[f"exit_{i}"].max(axis=-1) for i in range(2))
    early = float(np.quantile(first, 0.6))
    late = float(np.quantile(second[first <= early], 0.5))
    model.policy.threshold = (early, late)
    counted()
    return model.policy.threshold


def all_outputs(model, x):
    return {
        name: ops.convert_to_numpy(value) for name, value in model(x).items()
    }


def expected(model, x):
    """Answers, exits and scores one sample at a time, from all the exits."""
    outputs = all_outputs(model, x)
    thresholds = model.policy.thresholds(2)
    answers = outputs["final"].copy()
    exits = np.full(len(x), 2)
    scores = np.full(len(x), np.nan, "float32")
    for row in range(len(x)):
        for i in range(2):
            score = outputs[f"exit_{i}"][row].max()
            if score > thresholds[i]:
                answers[row] = outputs[f"exit_{i}"][row]
                exits[row], scores[row] = i, score
                break
    return answers, exits, scores


def rows_entering(exits):
    """How many rows enter each stage when samples leave at these exits."""
    return [int((exits >= stage).sum()) for stage in range(3)]


def as_counted(rows):
    """What the counting layers show: on JAX, batches filled up to a bucket."""
    if BACKEND == "jax":
        rows = [bucket(count) for count in rows]
    return {f"count_{i}": count for i, count in enumerate(rows) if count}


def test_answers_are_those_of_the_exits(model, data, thresholds):
    x, _ = data
    answers, exits, scores = expected(model, x)
    assert set(exits) == {0, 1, 2}
    result = model.predict_exits(x)
    np.testing.assert_allclose(result.predictions, answers, atol=1e-6)
    np.testing.assert_array_equal(result.exit_index, exits)
    np.testing.assert_allclose(result.score, scores, atol=1e-6)
    np.testing.assert_allclose(
        result.relative_cost, model.relative_costs[exits]
    )
    assert result.mean_cost == pytest.approx(model.relative_costs[exits].mean())
    np.testing.assert_allclose(model.predict(x), answers, atol=1e-6)


@pytest.mark.parametrize("method", ["predict_exits", "predict", "evaluate"])
def test_rows_that_enter_a_stage_had_not_left(model, data, thresholds, method):
    x, y = data
    _, exits, _ = expected(model, x)
    counted()
    if method == "evaluate":
        logs = model.evaluate(x, y, routed_only=True, return_dict=True)
        shares = [logs[f"{name}_share"] for name in model.exit_names]
        assert shares == pytest.approx(np.bincount(exits) / len(x))
    else:
        getattr(model, method)(x)
    assert counted() == as_counted(rows_entering(exits))


def test_evaluate_reports_what_predict_does(model, data, thresholds):
    x, y = data
    result = model.predict_exits(x)
    right = result.predictions.argmax(axis=-1) == y
    every = model.evaluate(x, y, return_dict=True, verbose=0)
    routed = model.evaluate(x, y, return_dict=True, routed_only=True)
    for logs in (every, routed):
        assert logs["mean_cost"] == pytest.approx(result.mean_cost, abs=1e-6)
        assert logs["routed_accuracy"] == pytest.approx(right.mean())
        shares = [logs[f"{name}_share"] for name in model.exit_names]
        assert shares == pytest.approx(result.exit_shares(3))
    assert set(routed) < set(every)


@pytest.mark.parametrize("size", [1, 2, 7, 70])
def test_batches_equal_one_by_one(model, data, thresholds, size):
    x = data[0][:size]
    one_by_one = [model.predict_exits(x[i : i + 1]) for i in range(size)]
    result = model.predict_exits(x)
    np.testing.assert_allclose(
        result.predictions,
        np.concatenate([r.predictions for r in one_by_one]),
        atol=1e-6,
    )
    np.testing.assert_array_equal(
        result.exit_index, np.concatenate([r.exit_index for r in one_by_one])
    )
    np.testing.assert_array_equal(
        model.predict_exits(x, batch_size=3).exit_index, result.exit_index
    )


@pytest.mark.parametrize(
    "threshold, leaves_at", [(-np.inf, 0), ((np.inf, -np.inf), 1), (np.inf, 2)]
)
def test_everybody_leaves_at_one_exit(model, data, threshold, leaves_at):
    model.policy.threshold = threshold
    counted()
    result = model.predict_exits(data[0])
    assert (result.exit_index == leaves_at).all()
    assert np.isnan(result.score).all() == (leaves_at == 2)
    entered = [70 if stage <= leaves_at else 0 for stage in range(3)]
    assert counted() == as_counted(entered)


def test_score_at_the_threshold_does_not_leave(model, data):
    outputs = all_outputs(model, data[0][:1])
    model.policy.threshold = (float(outputs["exit_0"].max()), -np.inf)
    assert model.predict_exits(data[0][:1]).exit_index.tolist() == [1]


def test_empty_batch(model):
    result = model.predict_exits(np.zeros((0, 6), "float32"))
    assert result.predictions.shape == (0, 4)
    assert len(result) == 0
    assert np.isnan(result.mean_cost)
    assert model.predict(np.zeros((0, 6), "float32")).shape == (0, 4)


def test_kinds_of_input(model, data, thresholds):
    x, y = data
    answers = model.predict(x)
    counted()

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 7

        def __getitem__(self, i):
            return x[10 * i : 10 * i + 10], y[10 * i : 10 * i + 10]

    kinds = {
        "float64": x.astype("float64"),
        "tensor": ops.convert_to_tensor(x),
        "list of one": [x],
        "dict by name": {"row": x},
        "generator": (x[i : i + 9] for i in range(0, 70, 9)),
        "PyDataset": Batches(),
    }
    if BACKEND == "tensorflow":
        import tensorflow as tf

        pairs = tf.data.Dataset.from_tensor_slices((x, y))
        kinds["tf.data.Dataset"] = pairs.batch(16)
        kinds["unlabelled"] = pairs.map(lambda x, y: x).batch(16)
    for name, kind in kinds.items():
        found = model.predict(kind, verbose=0)
        np.testing.assert_allclose(found, answers, atol=1e-6, err_msg=name)


def test_steps_takes_some_batches(model, data):
    endless = itertools.repeat(data[0][:5])
    assert model.predict(endless, steps=3, verbose=0).shape == (15, 4)


def test_current_weights_always_answer(data):
    x, y = data
    model = ee.add_exits(counting_model(), ["dense_0", "dense_1"])
    model.compile("sgd", objective="eenet_v1")
    model.policy.threshold = 0.5

    def check():
        outputs = all_outputs(model, x)
        found = model.predict(x, verbose=0)
        expected = outputs["final"]
        for i in (1, 0):
            leaves = outputs[f"exit_{i}_confidence"] > 0.5
            expected = np.where(leaves, outputs[f"exit_{i}"], expected)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        return found

    seen = [check()]
    model.fit(x, y, epochs=1, verbose=0)
    seen.append(check())
    model.set_weights([weight + 0.1 for weight in model.get_weights()])
    seen.append(check())
    kernel = model.net.get_layer("dense_0").kernel
    kernel.assign(ops.zeros_like(kernel.value) + 0.3)
    seen.append(check())
    for one, other in zip(seen, seen[1:], strict=False):
        assert np.abs(one - other).max() > 1e-4


def test_load_weights(model, data, thresholds, tmp_path):
    before = model.predict(data[0])
    model.save_weights(tmp_path / "model.weights.h5")
    weights = model.get_weights()
    model.set_weights([weight * 0.5 for weight in weights])
    assert np.abs(model.predict(data[0]) - before).max() > 1e-4
    model.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(model.predict(data[0]), before, atol=1e-7)


def test_light_router(model, data, thresholds):
    router = ee.Router(model)
    result = router.predict_exits(data[0])
    np.testing.assert_array_equal(
        result.exit_index, model.predict_exits(data[0]).exit_index
    )


def test_callbacks_see_every_batch(model, data):
    class Seen(keras.callbacks.Callback):
        rows = []

        def on_predict_batch_end(self, batch, logs=None):
            self.rows.append(len(logs["outputs"]))

    model.predict(data[0], batch_size=32, callbacks=[Seen()], verbose=0)
    assert Seen.rows == [32, 32, 6]


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX compiles per bucket")
def test_few_sizes_are_compiled(data):
    model = ee.add_exits(counting_model(), ["dense_0", "dense_1"])
    model.policy.threshold = np.inf
    for size in range(1, 65):
        model.predict_exits(data[0][:size])
    for compiled in model.router._engine._compiled:
        assert compiled._cache_size() <= 12


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a graph is TensorFlow's")
def test_few_graphs_for_all_sizes(data, monkeypatch):
    made = []
    for name in ("_compile", "_compile_one"):
        compile_ = getattr(GraphEngine, name)
        monkeypatch.setattr(
            GraphEngine,
            name,
            lambda *args, name=name, compile_=compile_: (
                made.append(name) or compile_(*args)
            ),
        )
    model = ee.add_exits(counting_model(), ["dense_0", "dense_1"])
    router = ee.Router(model)
    assert not made
    router.warm_up((1, 2, 256))
    # For one row one of each stage.
    assert sorted(made) == ["_compile"] * 2 + ["_compile_one"] * 3
    for size in (1, 3, 64, 70):
        router.predict_exits(data[0][:size])
        model.policy.threshold = 0.1 * size
    assert len(made) == 5


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a graph is TensorFlow's")
def test_one_row_compiles_the_stages_that_it_reaches(data, monkeypatch):
    made = []
    compile_ = GraphEngine._compile_one
    monkeypatch.setattr(
        GraphEngine,
        "_compile_one",
        lambda self, stages, index: (
            made.append(index) or compile_(self, stages, index)
        ),
    )
    model = ee.add_exits(counting_model(), ["dense_0", "dense_1"])
    router = ee.Router(model)
    for thresholds, stages in (
        ((-np.inf, -np.inf), [0]),
        ((np.inf, -np.inf), [0, 1]),
        ((np.inf, np.inf), [0, 1, 2]),
    ):
        found = router.predict_exits(data[0][:1], thresholds=thresholds)
        assert made == stages and found.exit_index == stages[-1]


def test_warm_up_wants_sizes(model):
    for sizes in ((), (0, 4)):
        with pytest.raises(ValueError, match="batch sizes of at least 1"):
            ee.Router(model).warm_up(sizes)


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX compiles per bucket")
def test_warm_up_compiles_all_buckets(data):
    model = ee.add_exits(counting_model(), ["dense_0", "dense_1"])
    router = ee.Router(model)
    router.warm_up((20,))
    before = [step._cache_size() for step in router._engine._compiled]
    for size in range(1, 21):
        router.predict_exits(data[0][:size], thresholds=(0.4, 0.3))
    assert before == [step._cache_size() for step in router._engine._compiled]


def test_many_threads_get_their_own_answers(model, data):
    x, router = data[0], ee.Router(model)
    model.policy.threshold = 0.4
    expected = model.predict(x)

    def answer(start):
        part = slice(start % 50, start % 50 + 1 + start % 17)
        found = router.predict_exits(x[part]).predictions
        return np.abs(found - expected[part]).max()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert max(pool.map(answer, range(200))) < 1e-5


def test_nan_is_refused(model, data):
    x = data[0].copy()
    x[[3, 5], 0] = np.nan
    with pytest.raises(ValueError, match=r"2 of 70 samples.*rows \[3, 5\]"):
        model.predict_exits(x)


@pytest.mark.parametrize(
    "x, message",
    [
        (np.zeros((2, 5), "float32"), r"shape \(None, 6\).*\(2, 5\)"),
        (np.zeros(6, "float32"), r"x\[None\]"),
        (np.array([["a"] * 6]), "dtype <U1"),
        ([np.zeros((2, 6)), np.zeros((2, 6))], "Received: 2 arrays"),
    ],
)
def test_wrong_inputs(model, x, message):
    with pytest.raises(ValueError, match=message):
        model.predict_exits(x)


def test_input_that_has_no_samples(model):
    with pytest.raises(TypeError, match="Received: int"):
        model.predict(3)


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX compiles per bucket")
def test_warming_up_again_fits_the_traffic(data):
    model = ee.add_exits(counting_model(), ["dense_0", "dense_1"])
    router = ee.Router(model)
    scores = ee.calibration.observe(model, data[0][:64], verbose=0).scores
    thresholds = (float(np.sort(scores[:, 0])[-14]), np.inf)
    expected = router.predict_exits(data[0][:64], thresholds=thresholds)
    staying = int((expected.exit_index > 0).sum())
    assert bucket(staying) > staying
    router.warm_up((64,))
    assert router._engine._buckets(staying) == staying
    before = [step._cache_size() for step in router._engine._compiled]
    again = router.predict_exits(data[0][:64], thresholds=thresholds)
    assert before == [step._cache_size() for step in router._engine._compiled]
    np.testing.assert_array_equal(again.exit_index, expected.exit_index)
