"""Segments that are trained apart give what the whole model gives."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers
from zoo import as_numpy as numbers

import keras_earlyexit as ee

pytestmark = pytest.mark.backends_long


def build(seed=0, regularizer=None, dropout=0.2):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8,))
    x = inputs
    for i in range(3):
        x = layers.Dense(
            6,
            activation="relu",
            kernel_regularizer=regularizer,
            name=f"dense_{i}",
        )(x)
        x = layers.BatchNormalization(name=f"norm_{i}")(x)
        x = layers.Dropout(dropout, seed=i, name=f"dropout_{i}")(x)
    outputs = layers.Dense(3, activation="softmax", name="head")(x)
    return ee.add_exits(
        keras.Model(inputs, outputs, name="small"),
        exits=["dropout_0", "dropout_1"],
        block="plain",
    )


def data(rows=48, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 8)).astype("float32")
    return x, rng.integers(0, 3, rows)


def optimizers(count):
    made = [
        keras.optimizers.SGD(0.1, momentum=0.9, clipnorm=1.0),
        keras.optimizers.AdamW(0.01),
        keras.optimizers.Adam(0.01),
    ]
    return made[:count]


@pytest.mark.parametrize(
    "base", ["eenet_v2", pytest.param("branchynet", marks=pytest.mark.long)]
)
@pytest.mark.parametrize(
    "cuts", [("exit_0",), ("exit_1",), ("exit_0", "exit_1")]
)
@pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")
def test_equals_the_whole_model_step_by_step(cuts, base):
    x, y = data()
    whole = build(regularizer="l2")
    names = [f"segment_{i}" for i in range(len(cuts) + 1)]
    whole.compile(
        dict(zip(names, optimizers(len(names)), strict=True)),
        ee.objectives.get("hierarchical", cuts=cuts, base=base),
        metrics=[],
    )
    apart = build(regularizer="l2")
    segments = ee.split(apart, cuts, base)
    for segment, optimizer in zip(
        segments, optimizers(len(names)), strict=True
    ):
        segment.compile(optimizer)
    for start in range(0, 48, 16):
        rows = slice(start, start + 16)
        expected = whole.train_on_batch(x[rows], y[rows], return_dict=True)
        crossing, losses = x[rows], []
        for segment in segments:
            learned = segment.learn(crossing, y[rows])
            losses.append(learned.logs["loss"])
            crossing = learned.outputs.get("feature")
        assert sum(losses) == pytest.approx(expected["loss"], rel=1e-5)
        for one, other in zip(whole.weights, apart.weights, strict=True):
            np.testing.assert_allclose(
                numbers(one), numbers(other), atol=2e-6, err_msg=one.path
            )


def test_step_gives_accuracies_and_outputs():
    x, y = data()
    edge, cloud = ee.split(build(), "exit_1")
    edge.compile("sgd")
    learned = edge.learn(x[:1], y[:1])
    assert set(learned.outputs) == {
        "exit_0",
        "exit_0_confidence",
        "exit_1",
        "exit_1_confidence",
        "feature",
    }
    assert learned.outputs["feature"].shape == (1, 6)
    learned = edge.learn(x, y)
    assert {"exit_0_accuracy", "exit_1_accuracy", "loss"} <= set(learned.logs)
    right = learned.outputs["exit_1"].argmax(axis=-1) == y
    assert learned.logs["exit_1_accuracy"] == pytest.approx(right.mean())
    cloud.compile("sgd")
    assert set(cloud.learn(learned.outputs["feature"], y).outputs) == {"final"}
    assert edge.exit_names == ("exit_0", "exit_1")
    assert cloud.exit_names == ("final",) and cloud.is_last


def test_fit_evaluate_and_step_by_turns():
    x, y = data()
    edge, _ = ee.split(build(), "exit_0")
    edge.compile("adam", metrics=["accuracy"], weighted_metrics=["accuracy"])
    history = edge.fit(x, y, epochs=2, verbose=0).history
    assert len(history["exit_0_accuracy"]) == 2
    edge.learn(x, y)
    edge.fit(x, y, verbose=0)
    assert set(edge.evaluate(x, y, verbose=0, return_dict=True)) >= {"loss"}


def test_who_leaves():
    x, y = data()
    model = build()
    edge, _ = ee.split(model, "exit_1")
    outputs = {k: numbers(v) for k, v in edge(x).items()}
    thresholds = edge.policy.thresholds(2)
    expected = np.zeros(len(x), bool)
    for i, name in enumerate(edge.exit_names):
        expected |= outputs[name].max(axis=-1) > thresholds[i]
    assert edge.policy.name == "max_probability"
    np.testing.assert_array_equal(edge.leaving(outputs), expected)
    scores = edge.scores(outputs)
    assert list(scores) == ["exit_0", "exit_1"]
    assert [score.shape for score in scores.values()] == [(len(x),)] * 2
    np.testing.assert_array_equal(edge.leaving(outputs, scores), expected)


def test_saved_segment_goes_on_as_if_nothing_had_happened(tmp_path):
    x, y = data()
    # The random state of layers is not saved by Keras.
    edge, _ = ee.split(build(dropout=0.0), "exit_0")
    edge.compile(keras.optimizers.Adam(0.01), weighted_metrics=["accuracy"])
    edge.learn(x, y)
    edge.save(tmp_path / "edge.keras")
    loaded = keras.models.load_model(tmp_path / "edge.keras")
    for segment in (edge, loaded):
        segment.learn(x, y)
    assert loaded.origin == edge.origin and loaded.position == 0
    for one, other in zip(edge.variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(numbers(one), numbers(other))


def test_loads_after_importing_the_package_alone(tmp_path):
    path = tmp_path / "cloud.keras"
    ee.split(build(), "exit_0")[1].save(path)
    code = (
        "import sys, keras_earlyexit, keras\n"
        f"model = keras.models.load_model({str(path)!r})\n"
        "print(type(model).__name__, *model.exit_names)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["SegmentModel", "exit_1", "final"], done


@pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")
def test_confidence_of_final_is_trained_for_those_who_look_at_it():
    x, y = data()
    edge, cloud = ee.split(build(), "exit_0", base="eenet_v3")
    cloud.compile("sgd")
    before = numbers(cloud.net.get_layer("final_confidence").kernel)
    feature = numbers(edge(x)["feature"])
    learned = cloud.learn(feature, y)
    assert learned.outputs["final_confidence"].shape == (48, 1)
    after = numbers(cloud.net.get_layer("final_confidence").kernel)
    assert (before != after).any()


def test_layers_of_another_objective_are_refused():
    model = build()
    model.compile("sgd", "zero_time_waste")
    with pytest.raises(ValueError, match="hierarchical"):
        ee.split(model)


def test_no_model_with_exits():
    with pytest.raises(TypeError, match="EarlyExitModel"):
        ee.split(keras.Sequential())
