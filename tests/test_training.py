"""Training keeps the habits of Keras, on every backend."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_earlyexit as ee

pytestmark = pytest.mark.backends

BACKEND = keras.backend.backend()
EENETS = [f"eenet_v{i}" for i in range(5)]
PARTS = {"loss", "prediction_loss", "cost_loss"}


def build(head="softmax", units=4, policy="max_probability", **options):
    inputs = keras.Input((6,))
    x = inputs
    for i in range(3):
        x = layers.Dense(8, activation="tanh", name=f"dense_{i}")(x)
    outputs = layers.Dense(units, activation=head, name="head")(x)
    plain = keras.Model(inputs, outputs, name="rows")
    return ee.add_exits(plain, ["dense_0", "dense_1"], policy=policy, **options)


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(64, 6)).astype("float32")
    return x, x[:, :4].argmax(axis=1)


@pytest.mark.parametrize("objective", EENETS)
def test_fit_logs(data, objective):
    model = build()
    model.compile("adam", objective)
    history = model.fit(
        *data, epochs=2, batch_size=16, validation_data=data, verbose=0
    ).history
    exits = {f"{name}_accuracy" for name in model.exit_names}
    parts = PARTS | ({"confidence_loss"} if objective == "eenet_v4" else set())
    routed = {"routed_accuracy", "mean_cost"}
    routed |= {f"{name}_share" for name in model.exit_names}
    assert {k for k in history if not k.startswith("val_")} == exits | parts
    validation = {k[4:] for k in history if k.startswith("val_")}
    assert validation == exits | parts | routed
    assert np.isfinite([history[k] for k in history]).all()
    loss = np.array(history["prediction_loss"]) + history["cost_loss"]
    loss = loss + history.get("confidence_loss", [0.0, 0.0])
    assert history["loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("objective", EENETS)
def test_every_trained_weight_moves(data, objective):
    model = build()
    model.compile("adam", objective)
    before = {v.path: ops.convert_to_numpy(v) for v in model.weights}
    model.fit(*data, epochs=1, verbose=0)
    still = {
        v.path.split("/")[-2]
        for v in model.weights
        if np.array_equal(before[v.path], ops.convert_to_numpy(v))
    }
    untrained = set()
    if objective in ("eenet_v0", "eenet_v1", "eenet_v2"):
        untrained = {"final_confidence"}
    if objective == "eenet_v0":
        untrained |= {"confidence_branch"}
    assert still == untrained


def test_the_loss_is_the_objective_of_the_outputs(data):
    model = build()
    model.compile("sgd", "eenet_v2")
    logs = model.evaluate(*data, verbose=0, return_dict=True, batch_size=64)
    outputs = model(data[0])
    parts = ee.objectives.get("eenet_v2")(
        data[1],
        [outputs[name] for name in model.exit_names],
        [outputs[f"exit_{i}_confidence"] for i in range(2)],
        model.relative_costs,
    )
    for name in PARTS:
        expected = ops.convert_to_numpy(parts[name]).item()
        assert logs[name] == pytest.approx(expected, rel=1e-5)


def test_layers_own_losses_are_added(data):
    inputs = keras.Input((6,))
    x = layers.Dense(8, kernel_regularizer="l2", name="first")(inputs)
    outputs = layers.Dense(4, activation="softmax", name="head")(x)
    model = ee.add_exits(keras.Model(inputs, outputs), ["first"])
    model.compile("sgd", "eenet_v1")
    logs = model.evaluate(*data, verbose=0, return_dict=True)
    own = sum(ops.convert_to_numpy(loss).sum() for loss in model.losses)
    assert own > 0
    assert logs["loss"] == pytest.approx(
        logs["prediction_loss"] + logs["cost_loss"] + own, rel=1e-5
    )


def test_sample_and_class_weights(data):
    x, y = data
    losses = {}
    for name, weights in {
        "none": {},
        "class": {"class_weight": {0: 2.0, 1: 0.5, 2: 1.0, 3: 1.0}},
        "sample": {
            "sample_weight": np.where(y == 0, 2.0, np.where(y == 1, 0.5, 1.0))
        },
    }.items():
        keras.utils.set_random_seed(0)
        model = build()
        model.compile("sgd", "eenet_v2")
        history = model.fit(x, y, batch_size=64, verbose=0, **weights).history
        losses[name] = history["loss"][0]
    assert losses["class"] == pytest.approx(losses["sample"], rel=1e-5)
    assert losses["class"] != pytest.approx(losses["none"], rel=1e-3)


@pytest.mark.parametrize("form", ["column", "one_hot"])
def test_forms_of_labels(data, form):
    x, y = data
    formed = y[:, None] if form == "column" else np.eye(4)[y]
    logs = []
    for labels in (y, formed):
        keras.utils.set_random_seed(0)
        model = build()
        model.compile("sgd")
        logs.append(model.evaluate(x, labels, verbose=0, return_dict=True))
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)


def test_metrics_for_every_exit(data):
    model = build()
    model.compile(
        "sgd",
        metrics=[
            "accuracy",
            keras.metrics.SparseTopKCategoricalAccuracy(2, name="top_2"),
            "sparse_categorical_crossentropy",
        ],
        weighted_metrics=["sparse_categorical_accuracy"],
    )
    logs = model.evaluate(*data, verbose=0, return_dict=True)
    for exit_name in (*model.exit_names, "routed"):
        assert logs[f"{exit_name}_accuracy"] <= logs[f"{exit_name}_top_2"]
        assert f"{exit_name}_sparse_categorical_crossentropy" in logs
        assert logs[f"{exit_name}_sparse_categorical_accuracy"] == (
            pytest.approx(logs[f"{exit_name}_accuracy"])
        )


def test_steps_per_execution_and_callbacks(data, tmp_path):
    model = build()
    # Keras takes no other value than 1 on torch.
    model.compile("adam", steps_per_execution=1 if BACKEND == "torch" else 2)
    best = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", monitor="val_mean_cost", mode="min"
    )
    stop = keras.callbacks.EarlyStopping(
        "val_routed_accuracy", patience=1, mode="max"
    )
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    model.fit(
        *data,
        batch_size=16,
        epochs=2,
        validation_split=0.25,
        callbacks=[best, stop, log],
        verbose=0,
    )
    loaded = keras.models.load_model(tmp_path / "best.keras")
    assert loaded.exit_names == model.exit_names
    assert "val_exit_0_share" in (tmp_path / "log.csv").read_text()


def test_train_and_test_on_batch(data):
    model = build()
    model.compile("adam")
    logs = model.train_on_batch(*data, return_dict=True)
    assert set(logs) == PARTS | {f"{n}_accuracy" for n in model.exit_names}
    logs = model.test_on_batch(*data, return_dict=True)
    assert "routed_accuracy" in logs


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.data feeds TensorFlow")
@pytest.mark.parametrize("objective", ["eenet_v2", "eenet_v4"])
def test_datasets(data, objective):
    import tensorflow as tf

    rows = tf.data.Dataset.from_tensor_slices(data)
    model = build()
    model.compile("adam", objective)
    if objective == "eenet_v4":
        with pytest.raises(ValueError, match="enumerate"):
            model.fit(rows.batch(16), verbose=0)
        rows = rows.enumerate()
    model.fit(
        rows.shuffle(64).batch(16),
        validation_data=tf.data.Dataset.from_tensor_slices(data).batch(16),
        epochs=2,
        verbose=0,
    )
    assert model.optimizer.iterations.numpy() == 8


def test_mixed_precision(data):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build()
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile("adam")
    model.fit(*data, epochs=1, verbose=0)
    outputs = model(data[0])
    for name in ("exit_0", "exit_0_confidence", "exit_1"):
        assert keras.backend.standardize_dtype(outputs[name].dtype) == "float32"
    assert model.predict(data[0], verbose=0).shape == (64, 4)


def test_tags_are_refreshed_from_the_training_data(data):
    model = build()
    model.compile("adam", ee.objectives.get("eenet_v4", cost_weight=0.5))
    (callback,) = model.objective.callbacks(model)
    x, y = callback.prepare(*data)
    assert y["index"].tolist() == list(range(64))
    callback.on_epoch_end(0)
    outputs = model.net(data[0])
    predictions = [outputs[name] for name in model.exit_names]
    best = model.objective.best_exits(
        data[1], predictions, model.relative_costs
    )
    np.testing.assert_array_equal(
        ops.convert_to_numpy(callback.table.tags),
        ops.convert_to_numpy(best),
    )


def test_two_stages(data):
    model = build(policy=None)
    objective = ee.objectives.TwoStage("eenet_v1", epochs=2)
    model.compile("adam", objective)
    assert model.policy.name == "learned"
    branch = model.net.get_layer("exit_0").confidence_branch.bias
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            bias = ops.convert_to_numpy(branch).item()
            seen.append((logs["cost_loss"], bias))

    model.fit(*data, epochs=4, callbacks=[Watch()], verbose=0)
    costs, biases = zip(*seen, strict=True)
    assert costs[:2] == (0.0, 0.0) and min(costs[2:]) > 0
    assert biases[:2] == (0.0, 0.0) and biases[2] != biases[3] != 0


def test_two_stages_go_on_in_a_second_fit(data):
    model = build()
    model.compile("sgd", ee.objectives.TwoStage(epochs=1, cost_weight=0.25))
    assert model.objective.objective.cost_weight == 0.25
    first = model.fit(*data, epochs=1, verbose=0).history
    second = model.fit(*data, epochs=1, verbose=0).history
    assert first["cost_loss"] == [0.0] and second["cost_loss"][0] > 0


@pytest.mark.parametrize(
    "objective, name, threshold",
    [
        ("eenet_v1", "learned", 0.5),
        ("eenet_v2", "learned", 0.5),
        ("eenet_v3", "learned", 0.5),  # 1 / E with two early exits
        ("eenet_v4", "learned", 0.5),
    ],
)
def test_objectives_bring_their_policy(objective, name, threshold):
    model = build(policy=None)
    model.compile("sgd", objective)
    assert model.policy.name == name
    assert model.policy.threshold == threshold


def test_given_policy_stays():
    model = build(policy=ee.policies.get("max_probability", threshold=0.7))
    model.compile("sgd", "eenet_v2")
    assert (model.policy.name, model.policy.threshold) == (
        "max_probability",
        0.7,
    )


def test_untrained_branch_warns():
    with pytest.warns(UserWarning, match="'eenet_v0' does not train"):
        build(policy="learned").compile("sgd", "eenet_v0")
    model = build()
    model.compile("sgd", "eenet_v0")
    with pytest.warns(UserWarning, match="left to chance"):
        model.policy = "learned"


@pytest.mark.parametrize(
    "head, units, task, labels",
    [
        ("sigmoid", 3, "multilabel", "multi"),
        ("sigmoid", 1, "multilabel", "binary"),
        (None, 2, "regression", "values"),
    ],
)
def test_other_tasks(head, units, task, labels, data):
    x, _ = data
    y = {
        "multi": (x[:, :3] > 0).astype("float32"),
        "binary": (x[:, 0] > 0).astype("int64"),
        "values": x[:, :2] * 2.0,
    }[labels]
    model = build(head, units, policy=None, task=task)
    model.compile(keras.optimizers.Adam(0.02), "eenet_v1")
    history = model.fit(x, y, epochs=20, validation_data=(x, y), verbose=0)
    history = history.history
    assert history["prediction_loss"][-1] < 0.8 * history["prediction_loss"][0]
    assert model.predict(x, verbose=0).shape == (64, units)
    metric = "mean_absolute_error" if labels == "values" else "accuracy"
    assert f"val_routed_{metric}" in history


def test_base_loss_per_exit(data):
    model = build(head=None, units=2, policy=None, task="regression")
    x, _ = data
    with pytest.warns(UserWarning, match="does not train"):
        model.compile("sgd", "eenet_v0", loss="mean_absolute_error")
    logs = model.evaluate(x, x[:, :2], verbose=0, return_dict=True)
    exits = [logs[f"{n}_mean_absolute_error"] for n in model.exit_names]
    assert logs["prediction_loss"] == pytest.approx(sum(exits), rel=1e-5)


def test_not_compiled(data):
    for method in ("fit", "evaluate"):
        with pytest.raises(ValueError, match="compiled model before"):
            getattr(build(), method)(*data)


@pytest.mark.parametrize(
    "labels, message",
    [
        (np.full(64, 4), "from 0 to 3.*labels from 4 to 4"),
        (np.full(64, -1), "from 0 to 3"),
        (np.full(64, 0.5), "integer labels"),
        (np.zeros((64, 3)), r"one-hot labels of shape \(batch, 4\)"),
        (np.zeros(63, int), "64 samples and 63 labels"),
        (None, "Expected labels"),
    ],
)
def test_wrong_labels(data, labels, message):
    model = build()
    model.compile("sgd")
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        model.fit(data[0], labels, verbose=0)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_nan_inputs(data):
    x = data[0].copy()
    x[5, 0] = np.nan
    model = build()
    model.compile("sgd")
    with pytest.raises(ValueError, match=r"NaN in 1 of 64 samples.*rows \[5\]"):
        model.fit(x, data[1], verbose=0)
    batches = ((x, data[1]) for _ in range(4))
    with pytest.raises(ValueError, match="finite loss"):
        model.fit(batches, steps_per_epoch=2, verbose=0)


def test_fit_remembers_what_it_was_given(data, tmp_path):
    x, y = data
    model = build()
    model.compile("adam", objective="branchynet")
    assert model.training_fingerprints is None
    model.fit(x, y, epochs=1, verbose=0, validation_split=0.25)
    seen = int(len(x) * 0.75)
    assert model.training_fingerprints.overlap(x[:seen]) == 1.0
    assert model.training_fingerprints.overlap(x[seen:]) == 0.0
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.training_fingerprints.overlap(x) == pytest.approx(0.75, 0.05)
    with pytest.raises(ValueError, match="was not trained on"):
        ee.calibrate(loaded, x)
