"""Event files, read back with TensorBoard's own reader."""

import io
import sys

import keras
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

import keras_earlyexit as ee


@pytest.fixture(scope="module")
def data():
    x, y = ee.datasets.load("digits", "train[:300]")
    return ee.datasets.normalize("digits", x), y


@pytest.fixture
def model():
    inputs = x = keras.Input((8, 8, 1))
    for i in range(3):
        x = keras.layers.Conv2D(4, 3, activation="relu", name=f"conv_{i}")(x)
    x = keras.layers.Flatten()(x)
    outputs = keras.layers.Dense(10, activation="softmax")(x)
    model = ee.add_exits(
        keras.Model(inputs, outputs), 2, block="plain", policy="max_probability"
    )
    model.compile("adam", "branchynet")
    model.policy.threshold = [0.15, float("inf")]
    return model


class Run:
    """What an event file holds: tag -> step -> array."""

    def __init__(self, folder):
        reader = event_accumulator.EventAccumulator(
            str(folder), size_guidance={event_accumulator.TENSORS: 0}
        )
        reader.Reload()
        self.found = {
            tag: {
                event.step: tensor_util.make_ndarray(event.tensor_proto)
                for event in reader.Tensors(tag)
            }
            for tag in reader.Tags()["tensors"]
        }
        self.plugins = {
            tag: reader.SummaryMetadata(tag).plugin_data.plugin_name
            for tag in self.found
        }

    def scalars(self, tag):
        assert self.plugins[tag] == "scalars"
        return {step: float(x) for step, x in self.found[tag].items()}


def test_figures_of_every_exit(model, data, tmp_path):
    x, y = data
    history = model.fit(
        x,
        y,
        epochs=2,
        validation_data=(x[:100], y[:100]),
        callbacks=[ee.callbacks.TensorBoard(tmp_path)],
        verbose=0,
    ).history
    train, validation = Run(tmp_path / "train"), Run(tmp_path / "validation")
    pairs = [
        (train, "loss/total", "loss"),
        (train, "loss/prediction", "prediction_loss"),
        (validation, "accuracy/routed", "val_routed_accuracy"),
        (validation, "cost/routed", "val_mean_cost"),
    ]
    for name in model.exit_names:
        key = f"accuracy/{name}"
        pairs.append((train, key, f"{name}_accuracy"))
        pairs.append((validation, key, f"val_{name}_accuracy"))
        pairs.append((validation, f"share/{name}", f"val_{name}_share"))
    for run, tag, log in pairs:
        assert list(run.scalars(tag)) == [0, 1]
        assert list(run.scalars(tag).values()) == pytest.approx(history[log])
    assert train.scalars("threshold/exit_0")[1] == pytest.approx(0.15)
    # It is infinite, and nothing that can be drawn.
    assert "threshold/exit_1" not in train.found
    assert train.scalars("learning_rate")[0] == pytest.approx(1e-3)
    assert not (tmp_path / "samples").exists()


def test_scores_and_samples(model, data, tmp_path):
    x, y = data
    board = ee.callbacks.TensorBoard(
        tmp_path, (x[:60], y[:60]), gallery_size=3, every=2
    )
    model.fit(x, y, epochs=3, callbacks=[board], verbose=0)
    run = Run(tmp_path / "samples")
    seen = ee.calibration.observe(model, x[:60], y[:60])
    thresholds = model.policy.threshold
    expected = {
        "accuracy/routed": seen.accuracy(thresholds),
        "cost/routed": seen.mean_cost(thresholds),
        "cost/final": model.relative_costs[-1],
        "share/exit_0": seen.exit_shares(thresholds)[0],
        "accuracy/exit_1": seen.exit_accuracies()[1],
    }
    for tag, value in expected.items():
        assert list(run.scalars(tag)) == [0, 2]
        assert run.scalars(tag)[2] == pytest.approx(value)
    for k in range(2):
        tag = f"score/exit_{k}"
        assert run.plugins[tag] == "histograms"
        buckets = run.found[tag][2]
        assert buckets[:, 2].sum() == 60
        assert buckets[0, 0] == pytest.approx(seen.scores[:, k].min())
        assert buckets[-1, 1] == pytest.approx(seen.scores[:, k].max())
    # Nobody may leave at exit_1.
    assert "left_at/exit_1" not in run.found
    assert run.plugins["left_at/exit_0"] == "images"
    width, height, png = run.found["left_at/exit_0"][2]
    picture = np.asarray(Image.open(io.BytesIO(png)))
    assert picture.shape == (int(height), int(width), 3)
    assert picture.shape == (60, 180, 3)
    rows = np.flatnonzero(seen.exit_index(thresholds) == 0)[:3]
    for i, row in enumerate(rows):
        right = seen.answers(0)[row] == y[row]
        frame, tile = picture[4, 60 * i + 4], picture[6:54, 60 * i + 6 :]
        assert (frame[1] > frame[0]) == right
        shades = tile[3::6, 3:48:6, 0] / 255
        np.testing.assert_allclose(shades, x[row, :, :, 0], atol=2e-3)


def test_texts(tmp_path):
    vectors = keras.layers.TextVectorization(8, output_sequence_length=4)
    x = np.array(["good | fine", "bad", "good good", "bad bad"] * 4)
    y = np.array([1, 0, 1, 0] * 4)
    vectors.adapt(x)
    inputs = keras.Input((1,), dtype="string")
    h = keras.layers.Embedding(8, 4)(vectors(inputs))
    h = keras.layers.Flatten()(h)
    h = keras.layers.Dense(4, activation="relu", name="first")(h)
    h = keras.layers.Dense(4, activation="relu", name="second")(h)
    outputs = keras.layers.Dense(2, activation="softmax")(h)
    model = ee.add_exits(
        keras.Model(inputs, outputs), ["first"], policy="max_probability"
    )
    model.compile("adam", "branchynet")
    model.policy.threshold = 0.0
    import tensorflow as tf

    texts = tf.constant(x[:, None])
    board = ee.callbacks.TensorBoard(tmp_path, (x[:, None], y), gallery_size=2)
    model.fit(texts, y, epochs=1, callbacks=[board], verbose=0)
    run = Run(tmp_path / "samples")
    assert run.plugins["left_at/exit_0"] == "text"
    text = str(run.found["left_at/exit_0"][0])
    assert "good \\\\| fine" in text and "| bad |" in text


@pytest.mark.parametrize("option", [{"gallery_size": 0}, {"every": 1.5}])
def test_wrong_options(tmp_path, option):
    with pytest.raises(ValueError, match="an integer of at least 1"):
        ee.callbacks.TensorBoard(tmp_path, **option)


def test_without_the_package_it_says_how_to_get_it(
    model, data, tmp_path, monkeypatch
):
    name = "tensorboard.summary.writer.event_file_writer"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="keras-earlyexit.tensorboard"):
        model.fit(
            *data, callbacks=[ee.callbacks.TensorBoard(tmp_path)], verbose=0
        )
