import keras
import numpy as np
import pytest
from keras import layers, ops
from zoo import as_numpy as numbers

import keras_earlyexit as ee

pytestmark = pytest.mark.backends_long


def build(seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8,))
    x = inputs
    for i in range(3):
        x = layers.Dense(6, activation="relu", name=f"dense_{i}")(x)
        x = layers.BatchNormalization(name=f"norm_{i}")(x)
    outputs = layers.Dense(3, activation="softmax", name="head")(x)
    model = ee.add_exits(
        keras.Model(inputs, outputs), exits=["norm_0", "norm_1"], block="plain"
    )
    return model


def data(rows=48, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 8)).astype("float32")
    return x, rng.integers(0, 3, rows)


def optimizers():
    return {
        "segment_0": keras.optimizers.SGD(0.1, momentum=0.9, clipnorm=1.0),
        "segment_1": keras.optimizers.AdamW(0.01),
    }


class Apart:
    """A segment that is trained by itself, by Keras' own training step."""

    def __init__(self, segment, objective, names, costs, optimizer):
        early = names if names[-1] != "final" else names[:-1]

        class Trained(keras.Model):
            def compute_loss(
                self, x=None, y=None, y_pred=None, sample_weight=None, **_
            ):
                return objective(
                    y,
                    [y_pred[name] for name in names],
                    [y_pred[f"{name}_confidence"] for name in early],
                    costs,
                )["loss"]

        self.model = Trained(segment.input, segment.output)
        self.model.compile(optimizer)

    def step(self, x, y):
        self.model.train_on_batch(x, y)


@pytest.mark.parametrize("base", ["eenet_v2", "branchynet"])
@pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")
def test_equals_segments_that_are_stepped_apart(base):
    x, y = data()
    together = build()
    objective = ee.objectives.get("hierarchical", cuts="exit_1", base=base)
    together.compile(optimizers(), objective, metrics=[])
    for weights in together.composite_optimizer.groups.values():
        assert weights

    alone = build()
    alone.compile("sgd", base)
    for one, other in zip(together.weights, alone.weights, strict=True):
        np.testing.assert_array_equal(numbers(one), numbers(other))
    edge_model, cloud_model = ee.partition(alone, "exit_1")
    costs = list(alone.relative_costs)
    base = ee.objectives.get(base).for_head(alone.head)
    edge = Apart(
        edge_model,
        base,
        ("exit_0", "exit_1"),
        costs[:2],
        optimizers()["segment_0"],
    )
    cloud = Apart(
        cloud_model, base, ("final",), costs[2:], optimizers()["segment_1"]
    )
    for start in range(0, 48, 16):
        batch = slice(start, start + 16)
        together.train_on_batch(x[batch], y[batch])
        # The features of the edge's own step, which it makes again below.
        state = [numbers(v) for v in edge_model.non_trainable_variables]
        feature = ops.stop_gradient(
            edge_model(x[batch], training=True)["feature"]
        )
        for variable, value in zip(
            edge_model.non_trainable_variables, state, strict=True
        ):
            variable.assign(value)
        edge.step(x[batch], y[batch])
        cloud.step(feature, y[batch])
    for one, other in zip(together.weights, alone.weights, strict=True):
        np.testing.assert_allclose(
            numbers(one), numbers(other), atol=1e-6, err_msg=one.path
        )


@pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")
def test_nothing_of_the_cloud_reaches_the_edge():
    x, y = data()
    model = build()
    objective = ee.objectives.get("hierarchical", cuts=["exit_0", "exit_1"])
    model.compile("sgd", objective)
    groups = model.composite_optimizer.groups
    assert set(groups) == {"segment_0", "segment_1", "segment_2"}
    before = {
        name: [numbers(v) for v in found] for name, found in groups.items()
    }

    def moved(name):
        return any(
            (numbers(v) != old).any()
            for v, old in zip(groups[name], before[name], strict=True)
        )

    network = model.training_network
    tail = keras.Model(network.input, network.output["final"])
    tail.compile("sgd", "sparse_categorical_crossentropy")
    tail.train_on_batch(x, y)
    assert moved("segment_2")
    # Not small: exactly nothing.
    assert not moved("segment_0") and not moved("segment_1")


def test_parts_are_sums_over_segments():
    rng = np.random.default_rng(1)
    predictions = [ops.softmax(rng.normal(size=(5, 3))) for _ in range(4)]
    confidences = [ops.sigmoid(rng.normal(size=(5, 1))) for _ in range(3)]
    costs, y = [0.2, 0.4, 0.7, 1.1], rng.integers(0, 3, 5)
    base = ee.objectives.get("eenet_v2", cost_weight=0.5)
    found = ee.objectives.get("hierarchical", cuts=["exit_1"], base=base)(
        y, predictions, confidences, costs
    )
    here = base(y, predictions[:2], confidences[:2], costs[:2])
    there = base(y, predictions[2:], confidences[2:], costs[2:])
    for name, value in found.items():
        np.testing.assert_allclose(
            float(value), float(here[name]) + float(there[name]), rtol=1e-5
        )


@pytest.mark.parametrize(
    "base",
    ["eenet_v4", "jei", "boosted", "zero_time_waste", "gradient_equilibrium"],
)
def test_bases_that_reach_over_all_exits_are_refused(base):
    with pytest.raises(ValueError, match="exits of one segment"):
        ee.objectives.get("hierarchical", base=base)


def test_unknown_cut():
    with pytest.raises(ValueError, match="Did you mean 'exit_1'"):
        build().compile(
            "sgd", ee.objectives.get("hierarchical", cuts="exit_11")
        )


def test_a_layer_on_both_sides_of_the_cut_is_refused():
    inputs = keras.Input((6,))
    twice = layers.Dense(6, name="twice")
    x = twice(inputs)
    x = layers.ReLU(name="between")(x)
    outputs = layers.Dense(3, activation="softmax")(twice(x))
    model = ee.add_exits(keras.Model(inputs, outputs), exits=["between"])
    with pytest.raises(ValueError, match="belong to one segment"):
        model.compile("sgd", "hierarchical")
