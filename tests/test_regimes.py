"""Which parts of the network learn, and when."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_earlyexit as ee
from keras_earlyexit import regimes

pytestmark = pytest.mark.backends_long

BACKBONE = regimes.BACKBONE
EXITS = {"exit_0", "exit_1"}


@pytest.fixture(scope="module")
def digits():
    x, y = ee.datasets.load("digits", "train")
    return x[:96].astype("float32") / 16, y[:96]


def build():
    """The last exit hangs on the tensor that the model's own head reads."""
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, strides=2, name="convolution")(inputs)
    x = layers.BatchNormalization(name="normalise")(x)
    x = layers.ReLU(name="early")(x)
    x = layers.Dropout(0.3)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(16, activation="relu", name="late")(x)
    outputs = layers.Dense(10, activation="softmax", name="head")(x)
    return ee.add_exits(keras.Model(inputs, outputs), ["early", "late"])


def backbone_of(model):
    """All weights of the plain model, batch statistics too."""
    names = ("convolution", "normalise", "late", "head")
    return [v for name in names for v in model.net.get_layer(name).weights]


def values(variables):
    return [ops.convert_to_numpy(v).copy() for v in variables]


def equal(some, others):
    return all(map(np.array_equal, some, others))


def flags(model):
    return [
        *(layer.trainable for layer in model.net.layers),
        *(variable.trainable for variable in model.weights),
    ]


class Watch(keras.callbacks.Callback):
    """Which groups, and which optimizers' states, moved in each epoch."""

    def __init__(self):
        super().__init__()
        self.moved, self.stepped = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.before = self._values()

    def on_epoch_end(self, epoch, logs=None):
        for seen, old, new in zip(
            (self.moved, self.stepped), self.before, self._values(), strict=True
        ):
            seen.append({k for k in new if not equal(old[k], new[k])})

    def _values(self):
        optimizer = self.model.composite_optimizer
        states = {k: o.variables for k, o in optimizer.by_group.items()}
        return [
            {name: values(found) for name, found in variables.items()}
            for variables in (optimizer.groups, states)
        ]


@pytest.mark.parametrize("objective", ["branchynet", "eenet_v3", "boosted"])
def test_disjoint_leaves_the_backbone_alone(objective, digits):
    model = build()
    # Weight decay and averages move what has no gradient.
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.1, use_ema=True)
    model.compile(optimizer, objective, regime="disjoint")
    before, trainable = values(backbone_of(model)), flags(model)
    exits = [
        model.net.get_layer(f"exit_{i}").prediction_branch.kernel
        for i in range(2)
    ]
    old = values(exits)
    model.fit(*digits, epochs=2, validation_split=0.2, verbose=0)
    assert equal(values(backbone_of(model)), before)
    assert not any(map(np.array_equal, values(exits), old))
    assert flags(model) == trainable
    frozen = model.composite_optimizer.by_group[BACKBONE]
    assert all(not np.any(value) for value in values(frozen.variables[2:]))


def test_a_frozen_backbone_answers_as_in_inference(digits):
    model = build()
    model.compile("sgd", "branchynet", regime="disjoint")
    trained = model.training_network(digits[0], training=True)
    answered = model.net(digits[0], training=False)
    assert set(trained) == set(answered)
    for name in answered:
        np.testing.assert_allclose(
            ops.convert_to_numpy(trained[name]),
            ops.convert_to_numpy(answered[name]),
            atol=1e-6,
        )


def test_nothing_is_left_behind_when_training_fails(digits):
    class Fail(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                raise RuntimeError("stopped")

    model = build()
    model.compile("adam", "branchynet", regime="disjoint")
    before, trainable = values(backbone_of(model)), flags(model)
    with pytest.raises(RuntimeError, match="stopped"):
        model.fit(*digits, callbacks=[Fail()], verbose=0)
    assert flags(model) == trainable
    assert equal(values(backbone_of(model)), before)
    model.compile("adam", "branchynet", regime="joint")
    model.fit(*digits, epochs=1, verbose=0)
    assert not any(
        map(np.array_equal, values(backbone_of(model))[:2], before[:2])
    )


def test_mixed_trains_the_backbone_first(digits):
    model = build()
    regime = ee.regimes.get("mixed", backbone_epochs=1)
    model.compile(keras.optimizers.AdamW(0.01), "branchynet", regime=regime)
    watch = Watch()
    seen = model.fit(
        *digits,
        epochs=2,
        validation_data=digits,
        callbacks=[watch],
        verbose=0,
    ).history
    assert watch.moved == watch.stepped == [{BACKBONE}, {BACKBONE, *EXITS}]
    # At first the loss is that of `final` alone, also in validation: 10
    # classes alike have ln 10 = 2.3.
    assert max(seen["loss"][0], seen["val_loss"][0]) < 4
    assert min(seen["loss"][1], seen["val_loss"][1]) > 4
    # A second fit goes on, one after `compile` starts again.
    model.fit(*digits, epochs=1, callbacks=[watch], verbose=0)
    assert watch.moved[-1] == {BACKBONE, *EXITS}
    model.compile("adam", "branchynet", regime=regime)
    model.fit(*digits, epochs=1, callbacks=[watch], verbose=0)
    assert watch.moved[-1] == {BACKBONE}


@pytest.mark.parametrize("epochs, first", [(4, 2), (5, 2), (1, 0)])
def test_mixed_takes_half_of_the_epochs(epochs, first):
    model = build()
    model.compile("sgd", "branchynet", regime="mixed")
    (callback,) = model.regime.callbacks(model)
    callback.set_model(model)
    callback.set_params({"epochs": epochs})
    seen = []
    for epoch in range(epochs):
        callback.on_epoch_begin(epoch)
        seen.append(model.regime.final_only)
        callback.on_epoch_end(epoch)
    assert seen == [True] * first + [False] * (epochs - first)


def test_joint_is_plain_training():
    model = build()
    optimizer = keras.optimizers.Adam()
    model.compile(optimizer, "branchynet")
    assert model.optimizer is optimizer and model.composite_optimizer is None
    learned = {id(v) for v in model.training_network.trainable_variables}
    assert learned == {id(v) for v in model.net.trainable_variables}


@pytest.mark.parametrize("objective", ["eenet_v3", "zero_time_waste"])
def test_each_variable_is_in_one_group(objective):
    model = build()
    model.compile("sgd", objective, regime="joint")
    groups = regimes.groups_of(model)
    found = [v.path for group in groups.values() for v in group]
    assert sorted(found) == sorted(v.path for v in model.trainable_variables)
    assert {v.path for v in groups[BACKBONE]} == {
        v.path for v in backbone_of(model) if v.trainable
    }
    assert all(v.path.startswith("exit_1") for v in groups["exit_1"])
    own = {"eenet_v3": "final_confidence", "zero_time_waste": "final_ensemble"}
    assert {v.path.split("/")[0] for v in groups["final"]} == {own[objective]}


@pytest.mark.parametrize(
    "regime", ["joint", "disjoint", regimes.Mixed(backbone_epochs=3)]
)
def test_saving(regime, tmp_path):
    model = build()
    model.compile("adam", "branchynet", regime=regime)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.regime) is type(ee.regimes.get(regime))
    assert loaded.regime.get_config() == model.regime.get_config()
    assert repr(loaded.regime) == repr(model.regime)


def test_wrong_regimes():
    with pytest.raises(ValueError, match="Did you mean 'disjoint'"):
        ee.regimes.get("disjoin")
    with pytest.raises(TypeError, match="Received: 3 .of type int"):
        ee.regimes.get(3)
    with pytest.raises(ValueError, match="0 or more, or None. Received"):
        ee.regimes.get("mixed", backbone_epochs=-1)
