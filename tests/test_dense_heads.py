"""Models that answer at every position: images pixel by pixel, and text.

The segmentation task is real digits, 0 to 2: each pixel with ink belongs to the
class of its digit, the others to the background. The tagging task is to mark,
in English prose, which characters begin a word and which are inside one.
"""

import keras
import numpy as np
import pytest
from keras import layers, ops
from zoo import as_numpy

import keras_earlyexit as ee
from keras_earlyexit import tasks
from keras_earlyexit.checks import check_data

BACKGROUND = 3
STEPS = 24


def digit_pixels(split, rows):
    x, digit = ee.datasets.load("digits", split)
    few = np.flatnonzero(digit < BACKGROUND)[:rows]
    x, digit = x[few], digit[few]
    y = np.where(x[..., 0] >= 6, digit[:, None, None], BACKGROUND)
    return ee.datasets.normalize("digits", x), y


def segmenter():
    """An encoder to half the size, a decoder back to the whole of it."""
    image = keras.Input((8, 8, 1), name="image")
    x = image
    for name, filters, strides in (
        ("stem", 8, 1),
        ("down", 12, 2),
        ("middle", 12, 1),
    ):
        x = layers.Conv2D(
            filters, 3, strides, "same", activation="relu", name=name
        )(x)
    x = layers.UpSampling2D(name="up")(x)
    x = layers.Conv2D(8, 1, activation="relu", name="narrow")(x)
    pixels = layers.Conv2D(4, 1, activation="softmax", name="head")(x)
    return keras.Model(image, pixels, name="segmenter")


def letters(split, rows):
    """Pieces of a description that comes with scikit-learn: (rows, STEPS)."""
    from sklearn.datasets import load_diabetes, load_wine

    text = (load_wine if split == "train" else load_diabetes)().DESCR
    codes = np.array([min(ord(letter), 127) for letter in text], "int32")
    inside = np.array([letter.isalnum() for letter in text], "int64")
    follows = np.append(0, inside[:-1])
    # 0: no part of a word, 1: begins one, 2: inside one.
    tags = inside * (1 + follows)
    starts = np.linspace(0, len(text) - STEPS, rows).astype(int)
    at = starts[:, None] + np.arange(STEPS)
    return codes[at], tags[at]


def tagger():
    """Two transformer blocks; the second one's input is a legal cut."""
    tokens = keras.Input((STEPS,), dtype="int32", name="tokens")
    x = layers.Embedding(128, 12, name="embedding")(tokens)
    x = layers.Conv1D(12, 3, padding="same", name="neighbours")(x)
    for i in range(2):
        y = layers.LayerNormalization(name=f"block{i}_norm")(x)
        y = layers.MultiHeadAttention(2, 6, name=f"block{i}_attention")(y, y)
        x = layers.Add(name=f"block{i}_add")([x, y])
        y = layers.Dense(24, activation="gelu", name=f"block{i}_wide")(x)
        y = layers.Dense(12, name=f"block{i}_narrow")(y)
        x = layers.Add(name=f"block{i}_out")([x, y])
    tags = layers.Dense(3, activation="softmax", name="head")(x)
    return keras.Model(tokens, tags, name="tagger")


TASKS = {
    "segmenter": (segmenter, digit_pixels, ["stem", "middle"]),
    "tagger": (tagger, letters, ["neighbours", "block0_out"]),
}


@pytest.fixture(scope="module", params=TASKS)
def trained(request):
    """A model with exits, trained, and its test data."""
    keras.utils.set_random_seed(0)
    build, data, exits = TASKS[request.param]
    model = ee.add_exits(
        build(), exits=exits, block="dense", policy="max_probability"
    )
    model.compile(keras.optimizers.Adam(0.01), "eenet_v0")
    history = model.fit(
        *data("train", 300), batch_size=30, epochs=10, verbose=0
    )
    model.losses_seen = history.history["loss"]
    return model, data("test", 96)


def outputs_of(model, x):
    return {name: as_numpy(value) for name, value in model(x).items()}


@pytest.mark.backends_long
def test_every_exit_answers_at_every_position(trained):
    model, (x, y) = trained
    outputs = outputs_of(model, x)
    for name in model.exit_names:
        assert outputs[name].shape == (*y.shape, model.head.units)
        np.testing.assert_allclose(outputs[name].sum(-1), 1, atol=1e-5)
    for name in model.exit_names[:-1]:
        assert outputs[f"{name}_confidence"].shape == (len(x), 1)
    assert model.head.positions == y.shape[1:]


@pytest.mark.backends
def test_training_learns_every_exit(trained):
    model, (x, y) = trained
    assert model.losses_seen[-1] < 0.7 * model.losses_seen[0]
    # More is right than if the most frequent class were answered everywhere.
    usual = np.bincount(y.ravel()).max() / y.size
    outputs = outputs_of(model, x)
    final = (outputs["final"].argmax(-1) == y).mean()
    assert final > usual + 0.02


def thresholds_in_use(model, x):
    """Thresholds that samples pass at every exit, none of them by a hair."""
    scores = ee.calibration.observe(model, x).scores
    middle = np.sort(scores, axis=0)[len(x) // 4 : -len(x) // 4]
    widest = np.diff(middle, axis=0).argmax(axis=0)
    return [
        float(column[i : i + 2].mean())
        for column, i in zip(middle.T, widest, strict=True)
    ]


@pytest.mark.backends
def test_evaluate_says_what_predict_gives(trained):
    model, (x, y) = trained
    model.policy.threshold = thresholds_in_use(model, x)
    logs = model.evaluate(x, y, batch_size=40, verbose=0, return_dict=True)
    outputs = outputs_of(model, x)
    for name in model.exit_names:
        accuracy = (outputs[name].argmax(-1) == y).mean()
        np.testing.assert_allclose(
            logs[f"{name}_accuracy"], accuracy, atol=1e-5
        )
    result = model.predict_exits(x)
    assert set(result.exit_index) == {0, 1, 2}
    routed = (result.predictions.argmax(-1) == y).mean()
    np.testing.assert_allclose(logs["routed_accuracy"], routed, atol=1e-5)
    np.testing.assert_allclose(logs["mean_cost"], result.mean_cost, atol=1e-5)
    only_routed = model.evaluate(
        x, y, verbose=0, return_dict=True, routed_only=True
    )
    for name, value in only_routed.items():
        np.testing.assert_allclose(value, logs[name], atol=1e-5)


@pytest.mark.backends
@pytest.mark.parametrize("reduce", ["mean", 0.1])
def test_a_batch_is_answered_as_its_samples_alone(trained, reduce):
    model, (x, _) = trained
    before = model.policy
    model.policy = ee.policies.get("max_probability", reduce=reduce)
    try:
        model.policy.threshold = thresholds_in_use(model, x[:8])
        together = model.predict_exits(x[:8])
        alone = [model.predict_exits(x[i : i + 1]) for i in range(8)]
        outputs = outputs_of(model, x[:8])
    finally:
        model.policy = before
    for part in ("predictions", "score", "exit_index"):
        np.testing.assert_allclose(
            np.concatenate([getattr(one, part) for one in alone]),
            getattr(together, part),
            atol=1e-5,
        )
    assert len(set(together.exit_index)) > 1
    for row, k in enumerate(together.exit_index):
        expected = outputs[model.exit_names[k]][row]
        np.testing.assert_allclose(
            together.predictions[row], expected, atol=1e-5
        )


@pytest.mark.backends
@pytest.mark.parametrize("risk", ["consistency", "performance_gap"])
def test_calibrate_keeps_the_risk_over_positions(trained, risk):
    model, (x, y) = trained
    report = ee.calibrate(
        model, x, y, risk=risk, epsilon=0.2, method="crc", delta=0.1
    )
    assert report.threshold == model.policy.threshold < np.inf
    final = outputs_of(model, x)["final"].argmax(-1)
    routed = model.predict(x, verbose=0).argmax(-1)
    target = final if risk == "consistency" else y
    loss = (routed != target).mean() - (final != target).mean()
    np.testing.assert_allclose(report.empirical_risk, loss, atol=1e-6)
    assert loss < 0.2
    assert report.expected_relative_cost < model.relative_costs[-1]


@pytest.mark.backends
def test_a_saved_model_answers_the_same(trained, tmp_path):
    model, (x, y) = trained
    model.policy.threshold = thresholds_in_use(model, x)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.head == model.head
    np.testing.assert_array_equal(again.relative_costs, model.relative_costs)
    for one, other in zip(again(x).values(), model(x).values(), strict=True):
        np.testing.assert_array_equal(as_numpy(one), as_numpy(other))
    np.testing.assert_array_equal(
        again.predict(x, verbose=0), model.predict(x, verbose=0)
    )
    again.fit(x, y, verbose=0)


def test_costs_count_each_block_where_it_works():
    model = ee.add_exits(segmenter(), exits=["stem", "middle"], block="dense")
    layers_macs = {
        "stem": 64 * 9 * 8,
        "down": 16 * 9 * 8 * 12,
        "middle": 16 * 9 * 12 * 12,
        "narrow": 64 * 12 * 8,
        "head": 64 * 8 * 4,
    }
    plain = sum(layers_macs.values())
    assert model.plain_macs == plain == ee.cost.count(segmenter()).macs
    # The second feature has half the size: its branch runs before the resize.
    first, second = 64 * 8 * 4 + 8, 16 * 12 * 4 + 12
    to_middle = sum(layers_macs[name] for name in ("stem", "down", "middle"))
    np.testing.assert_allclose(
        model.relative_costs * plain,
        [
            layers_macs["stem"] + first,
            to_middle + first + second,
            plain + first + second,
        ],
    )
    assert ee.cost.count(model).reliable


def test_exits_go_where_a_rule_puts_them():
    for build in (segmenter, tagger):
        model = ee.add_exits(build(), exits=1, block="dense")
        assert len(model.exit_layers) == 1
        assert model.predict(np.zeros((2, *model.net.input.shape[1:]))).ndim > 2


@pytest.mark.parametrize("block", ["pool", "plain", ee.ExitBlock(4, "conv")])
def test_blocks_that_answer_once_name_the_one_that_fits(block):
    with pytest.raises(ValueError, match="every position.*block='dense'"):
        ee.add_exits(segmenter(), block=block)


def test_a_callable_block_may_return_a_feature():
    def deeper(feature):
        return layers.Conv2D(16, 3, padding="same", activation="relu")(feature)

    model = ee.add_exits(segmenter(), exits=["middle"], block=deeper)
    block = model.net.get_layer("exit_0")
    assert (block.kind, block.positions) == ("dense", (8, 8))
    assert model.net.output["exit_0"].shape == (None, 8, 8, 4)
    with pytest.raises(ValueError, match=r"\(batch, positions\.\.\., chan"):
        ee.add_exits(
            segmenter(), ["middle"], block=lambda x: layers.Flatten()(x)
        )


def test_a_dense_block_needs_a_head_with_positions():
    image = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, name="conv")(image)
    x = layers.GlobalAveragePooling2D()(x)
    plain = keras.Model(image, layers.Dense(3, "softmax")(x))
    with pytest.raises(ValueError, match=r"positions of shape \(\).*'pool'"):
        ee.add_exits(plain, ["conv"], block="dense")


def test_long_skips_leave_cuts_before_the_first_one():
    image = keras.Input((8, 8, 1))
    early = layers.Conv2D(6, 3, padding="same", name="early")(image)
    skip = layers.Conv2D(6, 3, padding="same", name="skip")(early)
    x = layers.Conv2D(8, 3, 2, "same", name="down")(skip)
    x = layers.UpSampling2D(name="up")(x)
    x = layers.Concatenate(name="join")([x, skip])
    plain = keras.Model(image, layers.Conv2D(11, 1, activation="softmax")(x))
    with pytest.raises(ValueError, match="'down'.*two|2 tensors are alive"):
        ee.add_exits(plain, ["down"], block="dense")
    model = ee.add_exits(plain, ["skip", "join"], block="dense")
    assert model.exit_layers == ("skip", "join")


# Heads and their labels.


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
