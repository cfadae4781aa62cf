"""Steps are those that the product trains with."""

import keras
import pytest
from keras import layers

import keras_earlyexit as ee
from keras_earlyexit.fusing import FusedNormalization

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="nothing is fused there"
)


def with_normalization():
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, name="first")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Conv2D(4, 3)(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


@pytest.fixture
def trained_fused(monkeypatch):
    """Calls of fused normalisations that learn, as they are built."""
    found, call = [], FusedNormalization.call

    def noted(self, feature, training=None, mask=None):
        if training:
            found.append(self.norm.name)
        return call(self, feature, training, mask)

    monkeypatch.setattr(FusedNormalization, "call", noted)
    return found


def test_steps_of_a_model_with_exits_are_fused(trained_fused):
    model = ee.add_exits(with_normalization(), ["norm"])
    ee.cost.profile(model, (2,), repeats=1, training=True)
    assert set(trained_fused) == {"norm"}


def test_steps_of_a_plain_model_are_those_of_keras(trained_fused):
    ee.cost.profile(with_normalization(), (2,), repeats=1, training=True)
    assert not trained_fused
