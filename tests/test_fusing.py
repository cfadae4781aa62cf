"""One operation for a batch normalisation learns what Keras' many learn."""

import os
import platform
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers
from zoo import LIGHT, ZOO, as_numpy, plain_and_early

import keras_earlyexit as ee
from keras_earlyexit import surgery
from keras_earlyexit.fusing import FusedNormalization, fused_network

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"

only_tensorflow = pytest.mark.skipif(
    not ON_TENSORFLOW, reason="other backends have no such operation"
)


def network(normalized):
    """A small net with an exit; `normalized` is its middle."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same")(inputs)
    x = layers.ReLU(name="early")(normalized(x))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3)(x)))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(5, activation="softmax")(x))


def twice(x):
    shared = layers.BatchNormalization(momentum=0.8)
    return shared(layers.ReLU()(shared(x)))


def frozen(x):
    norm = layers.BatchNormalization()
    norm.trainable = False
    return norm(x)


def half(x):
    return layers.BatchNormalization(dtype="mixed_float16")(x)


MIDDLES = {
    "plain": layers.BatchNormalization(epsilon=1e-2),
    "no_scale": layers.BatchNormalization(scale=False),
    "no_center": layers.BatchNormalization(center=False),
    "twice": twice,
    "frozen": frozen,
    "half": half,
}


def fused_calls(net):
    calls = surgery.trace(net).calls
    return sum(isinstance(c.operation, FusedNormalization) for c in calls)


def trained(middle, train_plainly, monkeypatch):
    keras.utils.set_random_seed(3)
    model = ee.add_exits(network(middle), ["early"], copy=True)
    with monkeypatch.context() as patch:
        if train_plainly:
            patch.setattr("keras_earlyexit.fusing._can_fuse", lambda _: False)
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "branchynet")
    found = fused_calls(model.training_network)
    assert found == 0 if train_plainly else found >= 2
    generator = np.random.default_rng(0)
    for rows in (16, 7, 1):
        x = generator.normal(1.0, 2.0, (rows, 8, 8, 3)).astype("float32")
        model.train_on_batch(x, generator.integers(0, 5, rows))
    return model


@only_tensorflow
@pytest.mark.parametrize("middle", MIDDLES)
def test_it_learns_the_same(middle, monkeypatch):
    """Weights and moving statistics, over batches of several sizes."""
    ours, plain = (
        trained(MIDDLES[middle], train_plainly, monkeypatch)
        for train_plainly in (False, True)
    )
    atol = 5e-3 if middle == "half" else 2e-5
    for one, other in zip(ours.variables, plain.variables, strict=True):
        np.testing.assert_allclose(
            as_numpy(one), as_numpy(other), atol=atol, err_msg=one.path
        )


@only_tensorflow
@pytest.mark.parametrize("name", LIGHT)
def test_every_kind_of_model(name):
    """The network that is trained gives what the model gives."""
    plain, model = plain_and_early(name)
    x, _ = ZOO[name].batch(4)
    net = fused_network(model.net)
    norms = {
        layer
        for layer in plain.layers
        if type(layer) is layers.BatchNormalization and layer.input.ndim == 4
    }
    assert fused_calls(net) >= len(norms)
    for key, value in model.net(x, training=False).items():
        found = as_numpy(net(x, training=False)[key])
        np.testing.assert_allclose(found, as_numpy(value), atol=1e-4, rtol=1e-4)


@only_tensorflow
@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.BatchNormalization(axis=1),
        lambda: layers.BatchNormalization(renorm=True),
        lambda: layers.BatchNormalization(synchronized=True),
        lambda: layers.LayerNormalization(),
        lambda: type("Own", (layers.BatchNormalization,), {})(),
    ],
    ids=["axis", "renorm", "synchronized", "layer_norm", "subclass"],
)
def test_what_is_something_else_stays(make):
    norm = make()
    net = network(norm)
    assert fused_calls(fused_network(net)) == 1
    assert any(c.operation is norm for c in surgery.trace(net).calls)


@pytest.mark.backends
def test_nothing_to_fuse_is_the_same_network():
    net = network(layers.LayerNormalization())
    if ON_TENSORFLOW:
        inputs = keras.Input((4,))
        net = keras.Model(inputs, layers.Dense(2)(inputs))
    assert fused_network(net) is net


WITH_ONEDNN = """
import numpy as np
import keras_earlyexit as ee
from keras_earlyexit.engines import onednn

assert onednn.is_on() is {on}
model = ee.add_exits(ee.backbones.resnet_cifar(8, (16, 16, 3), 10), 2)
for rows in (1, 3, 9):
    x = np.random.default_rng(0).normal(size=(rows, 16, 16, 3))
    x = x.astype("float32")
    found = model.router.predict_exits(x, thresholds=[np.inf, np.inf])
    final = np.asarray(model.net(x)["final"])
    np.testing.assert_allclose(found.predictions, final, atol=1e-4)
"""


@only_tensorflow
@pytest.mark.long
@pytest.mark.parametrize("on", [False, True])
@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="other processors"
)
def test_answers_with_and_without_onednn(on):
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": str(int(on))}
    command = [sys.executable, "-c", WITH_ONEDNN.format(on=on)]
    subprocess.run(command, env=environment, check=True, timeout=300)


@only_tensorflow
def test_segments_train_with_it(monkeypatch):
    seen = []
    call = FusedNormalization.call

    def watched(self, feature, training=None, mask=None):
        seen.append((self.norm.name, training))
        return call(self, feature, training, mask)

    monkeypatch.setattr(FusedNormalization, "call", watched)
    model = ee.add_exits(network(layers.BatchNormalization()), ["early"])
    model.compile("sgd", "branchynet")
    edge, cloud = ee.split(model, "exit_0")
    x = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype("float32")
    for segment in (edge, cloud):
        segment.compile("sgd")
        (norm,) = (
            layer
            for layer in segment.net.layers
            if isinstance(layer, layers.BatchNormalization)
        )
        before = as_numpy(norm.moving_mean)
        seen.clear()
        x = segment.learn(x, np.arange(6) % 5).outputs.get("feature")
        assert (norm.name, True) in seen
        assert (as_numpy(norm.moving_mean) != before).any()
