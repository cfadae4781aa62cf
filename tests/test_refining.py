"""Layers behind the exits, and what they hand on."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_earlyexit as ee
from keras_earlyexit import refining

pytestmark = pytest.mark.backends_long


@keras.saving.register_keras_serializable(package="tests")
class Adding(refining.Refiner):
    """Adds up the predictions, in memory, and says a confidence."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, prediction, confidence=None, memory=None):
        total = self.factor * prediction
        if memory is not None:
            total = total + memory
        if confidence is None:
            return {"prediction": total}
        return {
            "prediction": total,
            "confidence": 0.5 * confidence,
            "memory": ops.copy(total),
        }

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


HEADS = [(np.full((2, 3), i + 1.0), np.ones((2, 1))) for i in range(3)]
HEADS[-1] = (HEADS[-1][0], None)


def numbers(found):
    return [
        (
            ops.convert_to_numpy(p)[0, 0].item(),
            None if h is None else ops.convert_to_numpy(h)[0, 0].item(),
        )
        for p, h in found
    ]


def test_each_reads_the_memory_of_the_one_before():
    found = refining.refine([Adding(), Adding(2.0), Adding()], HEADS)
    assert numbers(found) == [(1.0, 0.5), (5.0, 0.5), (8.0, None)]


def test_exits_without_one_hand_nothing_on():
    found = refining.refine([Adding(), None, Adding()], HEADS)
    assert numbers(found) == [(1.0, 0.5), (2.0, 1.0), (3.0, None)]
    assert numbers(refining.refine([None] * 3, HEADS)) == [
        (1.0, 1.0),
        (2.0, 1.0),
        (3.0, None),
    ]


def test_same_looks_at_kind_and_options_but_not_at_names():
    ours = [Adding(name="one"), Adding(2.0, name="two"), None]
    assert refining.same(ours, [Adding(), Adding(2.0), None])
    assert not refining.same(ours, [Adding(), Adding(), None])
    assert not refining.same(ours, [Adding(), None, None])
    assert not refining.same(ours, [refining.Refiner(), Adding(2.0), None])


def test_a_refiner_without_a_call():
    with pytest.raises(TypeError, match="Refiner does not define `call`"):
        refining.Refiner().call(HEADS[0][0])


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_refiners_work_in_float32(policy):
    """Small probabilities are nothing in half precision."""
    keras.config.set_dtype_policy(policy)
    try:
        refiner = Adding()
        small = ops.convert_to_tensor(np.array([[1e-12]], "float32"))
        found = refiner(small)["prediction"]
    finally:
        keras.config.set_dtype_policy("float32")
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    assert ops.convert_to_numpy(found).item() == pytest.approx(1e-12)
    assert Adding.from_config(refiner.get_config()).compute_dtype == "float32"


@pytest.mark.parametrize(
    "objective", ["boosted", "exit_scheduling", "jei", "zero_time_waste"]
)
def test_objectives_under_mixed_precision(objective):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(32, 6)).astype("float32")
    y = x[:, :4].argmax(axis=1)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        inputs = keras.Input((6,))
        feature = layers.Dense(8, activation="tanh", name="first")(inputs)
        outputs = layers.Dense(4, activation="softmax")(feature)
        model = ee.add_exits(keras.Model(inputs, outputs), ["first"])
        model.compile("adam", objective)
    finally:
        keras.config.set_dtype_policy("float32")
    logs = model.fit(x, y, epochs=1, verbose=0).history
    assert np.isfinite(logs["loss"]).all()
    early = model(x)["exit_0"]
    assert keras.backend.standardize_dtype(early.dtype) == "float32"
    assert np.isfinite(model.predict(x, verbose=0)).all()


def test_refiners_of_a_stage_cost_what_they_cost():
    """Their work is counted, and comes with the exit that they belong to."""
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="tanh", name="first")(inputs)
    x = layers.Dense(8, activation="tanh", name="second")(x)
    outputs = layers.Dense(4, activation="softmax")(x)
    model = ee.add_exits(keras.Model(inputs, outputs), ["first", "second"])
    before = model.relative_costs * model.plain_macs
    model.compile("sgd", "jei")
    after = model.relative_costs * model.plain_macs
    # A gate has 4 weights; the block goes on to work out its own confidence.
    np.testing.assert_allclose(after - before, [4.0, 8.0, 8.0])
