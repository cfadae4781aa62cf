"""Heads that answer at every position, and the labels they take."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from zoo import as_numpy

import keras_earlyexit as ee
from keras_earlyexit import tasks
from keras_earlyexit.checks import check_data


def tiny(head, loss=None):
    """A model on (4, 6) positions whose answer is what `head` makes."""
    inputs = keras.Input((4, 6, 3))
    x = layers.Conv2D(5, 3, padding="same", name="conv")(inputs)
    model = keras.Model(inputs, head(x), name="tiny")
    if loss is not None:
        model.compile("sgd", loss=loss)
    return model


def head_of(head, loss=None, task=None):
    return ee.add_exits(tiny(head, loss), ["conv"], block="dense", task=task)


@pytest.mark.parametrize(
    "head, positions",
    [
        (layers.Conv2D(3, 1, activation="softmax"), (4, 6)),
        (layers.TimeDistributed(layers.Dense(3, "softmax")), (4, 6)),
        (
            keras.Sequential(
                [layers.Conv2D(3, 1, 2, activation="softmax"),
                 layers.UpSampling2D(4, interpolation="bilinear"),
                 layers.Cropping2D(1)]
            ),
            (6, 10),
        ),
    ],
)  # fmt: skip
def test_softmax_is_found_behind_what_keeps_probabilities(head, positions):
    model = head_of(head)
    assert model.head == tasks.Head(3, "softmax", "classification", positions)
    answers = as_numpy(model(np.ones((2, 4, 6, 3), "float32"))["final"])
    np.testing.assert_allclose(answers.sum(-1), 1, atol=1e-5)


def test_what_overshoots_leaves_no_probabilities():
    head = keras.Sequential(
        [
            layers.Conv2D(3, 1, activation="softmax"),
            layers.UpSampling2D(2, interpolation="bicubic"),
        ]
    )
    with pytest.raises(ValueError, match="ends without softmax or sigmoid"):
        head_of(head)


def test_classes_must_be_on_the_last_axis():
    with pytest.raises(ValueError, match="last axis.*axis=1.*Permute"):
        head_of(layers.Softmax(axis=1))
    swapped = keras.Sequential(
        [layers.Softmax(axis=1), layers.Permute((2, 3, 1))]
    )
    assert head_of(swapped).head.activation == "softmax"


CLASSES = layers.Conv2D(3, 1, activation="softmax")
LABELS = {
    "classes": (CLASSES, None, (4, 6), 3),
    "classes_last_axis": (CLASSES, None, (4, 6, 1), 3),
    "yes_or_no": (layers.Conv2D(1, 1, activation="sigmoid"), None, (4, 6), 2),
    "labels": (layers.Conv2D(2, 1, activation="sigmoid"), None, (4, 6, 2), 2),
    "value": (layers.Conv2D(1, 1), "mse", (4, 6), 2),
    "values": (layers.Conv2D(2, 1), "mse", (4, 6, 2), 2),
}


@pytest.mark.parametrize("name", LABELS)
def test_every_task_trains_at_positions(name):
    head, loss, shape, top = LABELS[name]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 4, 6, 3)).astype("float32")
    y = rng.integers(0, top, (20, *shape))
    model = head_of(head.from_config(head.get_config()), loss)
    model.compile("adam", "eenet_v1", run_eagerly=True)
    first, *_ = model.fit(x, y, epochs=4, verbose=0).history["loss"]
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    assert logs["loss"] < first
    seen = ee.calibration.observe(model, x, y)
    assert seen.labels.size == y.size
    assert 0 <= seen.metric(0.5)


def test_forms_of_class_labels_are_equal():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 4, 6, 3)).astype("float32")
    y = rng.integers(0, 3, (20, 4, 6))
    model = head_of(CLASSES.from_config(CLASSES.get_config()))
    logs, accuracies = [], []
    for form in (y, y[..., None], np.eye(3)[y]):
        model.compile("adam", "eenet_v1", run_eagerly=True)
        logs.append(model.evaluate(x, form, verbose=0))
        seen = ee.calibration.observe(model, x, form)
        accuracies.append(seen.exit_accuracies())
    np.testing.assert_allclose(logs[1:], [logs[0]] * 2, atol=1e-5)
    np.testing.assert_array_equal(accuracies[1:], [accuracies[0]] * 2)


CLASS_HEAD = tasks.Head(3, "softmax", "classification", (4, 6))
LABEL_HEAD = tasks.Head(2, "sigmoid", "multilabel", (4, 6))
VALUE_HEAD = tasks.Head(1, "linear", "regression", [None])


@pytest.mark.parametrize(
    "head, y, message",
    [
        (CLASS_HEAD, np.zeros(5), r"\(batch, 4, 6\) or \(batch, 4, 6, 1\), or "
         r"one-hot.*\(batch, 4, 6, 3\)\. Received: y with shape \(5,\)"),
        (CLASS_HEAD, np.zeros((5, 6, 4)), r"shape \(5, 6, 4\)"),
        (CLASS_HEAD, np.zeros((5, 24)), r"shape \(5, 24\)"),
        (CLASS_HEAD, np.zeros((5, 4, 6, 2)), r"shape \(5, 4, 6, 2\)"),
        (CLASS_HEAD, np.full((5, 4, 6), 3), "from 0 to 2.*labels from 3 to 3"),
        (CLASS_HEAD, np.full((5, 4, 6), -1), "labels from -1 to -1"),
        (CLASS_HEAD, np.full((5, 4, 6), 0.5), "labels from 0.5 to 0.5"),
        (CLASS_HEAD, np.full((5, 4, 6), np.nan), "labels from nan to nan"),
        (CLASS_HEAD, np.full((5, 4, 6, 3), np.nan), "NaN in its rows .0, 1"),
        (CLASS_HEAD, np.full((5, 4, 6), "cat"), "numbers.*dtype <U3"),
        (LABEL_HEAD, np.zeros((5, 4, 6)), r"y of shape \(batch, 4, 6, 2\)"),
        (LABEL_HEAD, np.full((5, 4, 6, 2), 2), "between 0 and 1.*2 to 2"),
        (VALUE_HEAD, np.zeros(5), r"\(batch, any, 1\), one value for each"),
        (VALUE_HEAD, np.full((5, 9), np.nan), "without NaN"),
        (tasks.Head(3, "softmax", "classification"), np.zeros((5, 4, 6)),
         r"integer labels of shape \(batch,\) or \(batch, 1\).*positions="),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_are_refused(head, y, message):
    with pytest.raises(ValueError, match=message):
        head.check_labels(y)


def test_labels_that_fit_are_not_refused():
    for shape in ((5, 4, 6), (5, 4, 6, 1), (5, 4, 6, 3), (0, 4, 6)):
        CLASS_HEAD.check_labels(np.zeros(shape))
    LABEL_HEAD.check_labels(np.ones((5, 4, 6, 2)))
    for shape in ((5, 7), (5, 7, 1), (0, 7)):
        VALUE_HEAD.check_labels(np.zeros(shape))


def test_one_label_for_a_whole_image_is_refused_by_fit():
    model = head_of(CLASSES.from_config(CLASSES.get_config()))
    model.compile("adam")
    with pytest.raises(ValueError, match=r"\(batch, 4, 6\).*\(20,\)"):
        model.fit(np.zeros((20, 4, 6, 3)), np.zeros(20, int))


@pytest.mark.parametrize(
    "weights, message",
    [
        ({"class_weight": {0: 1.0}}, r"once for each sample.*\(4, 6\)"),
        ({"sample_weight": np.ones((8, 4, 6))}, r"shape \(8,\).*\(8, 4, 6\)"),
        ({"sample_weight": np.ones(7)}, r"one weight.*\(8,\).*\(7,\)"),
        ({"sample_weight": np.array([np.nan] * 8)}, r"NaN in its rows \[0"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message):
    x, y = np.zeros((8, 4, 6, 3)), np.zeros((8, 4, 6), int)
    with pytest.raises(ValueError, match=message):
        check_data(CLASS_HEAD, x, y, **weights)
    check_data(CLASS_HEAD, x, y, sample_weight=np.ones((8, 1)))


def test_a_network_made_by_hand_says_its_positions():
    inputs = keras.Input((4, 6, 3))
    x = layers.Conv2D(5, 3, padding="same")(inputs)
    prediction, confidence = ee.ExitBlock(3, "dense")(x)
    outputs = {
        "exit_0": prediction,
        "exit_0_confidence": confidence,
        "final": layers.Conv2D(3, 1, activation="softmax")(ops.relu(x)),
    }
    model = ee.EarlyExitModel(keras.Model(inputs, outputs), CLASS_HEAD)
    model.compile("adam", run_eagerly=True)
    y = np.zeros((8, 4, 6), "int64")
    model.fit(np.zeros((8, 4, 6, 3), "float32"), y, verbose=0)
