"""Stages: composed they are the whole, and they cost what they cost."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from zoo import NAMES, ZOO, as_numpy, plain_and_early

import keras_earlyexit as ee
from keras_earlyexit import exit_graph, policies, surgery


@keras.saving.register_keras_serializable(package="stages_tests")
class Agreement(policies.Policy):
    """Carries the sum of all probabilities so far to the next exit."""

    name = "agreement"
    uses_probabilities = True

    def carry_shape(self, shape):
        return shape

    def score(self, probabilities, confidence, carry, exit_index):
        if carry is not None:
            probabilities = probabilities + carry
        return ops.max(probabilities, axis=-1), probabilities


def run_through(model, x):
    """What every stage returns, each fed with what the one before gave."""
    results, given = [], x
    for stage in model.stages:
        results.append(stage(given))
        given = results[-1].get("feature")
        if "carry" in results[-1]:
            given = {"feature": given, "carry": results[-1]["carry"]}
    return results


def check_stage(stage, index, count):
    """The contract of a stage, whatever the model."""
    is_last = index == count - 1
    assert isinstance(stage, keras.Model)
    keys = {"prediction"}
    if not is_last:
        keys |= {"feature", "confidence", "score"}
    carries = not is_last and "carry" in stage.output
    assert set(stage.output) == keys | ({"carry"} if carries else set())
    if index > 0:
        assert stage.inputs[0].name == "feature"
    if not is_last:
        assert stage.output["score"].shape == (None,)
        assert stage.output["confidence"].shape == (None, 1)


@pytest.mark.backends
@pytest.mark.parametrize("name", NAMES)
def test_stages_composed_are_the_whole(name):
    _, model = plain_and_early(name)
    x, _ = ZOO[name].batch(4)
    whole = model(x)
    results = run_through(model, x)
    assert len(results) == len(model.exit_names)
    for exit_name, result in zip(model.exit_names, results, strict=True):
        for key, value in whole.items():
            if key in (exit_name, f"{exit_name}_confidence"):
                part = "confidence" if key != exit_name else "prediction"
                np.testing.assert_allclose(
                    as_numpy(result[part]), as_numpy(value), rtol=0, atol=1e-6
                )


@pytest.mark.parametrize("name", NAMES)
def test_stages_keep_their_contract_and_share_every_weight(name):
    _, model = plain_and_early(name)
    held = set()
    for index, stage in enumerate(model.stages):
        check_stage(stage, index, len(model.stages))
        weights = {id(weight) for weight in stage.weights}
        assert held.isdisjoint(weights) or "shared" in name or "nested" in name
        held |= weights
    unneeded = model.net.get_layer("final_confidence").weights
    assert held | set(map(id, unneeded)) == set(map(id, model.net.weights))


@pytest.mark.parametrize("name", NAMES)
def test_relative_costs_are_those_of_the_calls_on_the_way(name):
    plain, model = plain_and_early(name)
    plain = ee.cost.count(plain).macs
    assert model.plain_macs == plain
    on_the_way = []
    for exit_name, cost in zip(
        model.exit_names, model.relative_costs, strict=True
    ):
        on_the_way.append(model.net.output[exit_name])
        if exit_name != "final":
            on_the_way.append(model.net.output[f"{exit_name}_confidence"])
        partial = keras.Model(model.net.input, on_the_way)
        assert cost == ee.cost.count(partial).macs / plain, exit_name
    assert model.relative_costs[-1] > 1


def test_authors_convention_counts_the_own_dense_layers_only():
    model = ZOO["residual_cnn"].add_exits(block="conv", cost="eenets")
    *costs, final = model.relative_costs
    assert final == 1
    plain = ee.cost.count(ZOO["residual_cnn"].build(), "eenets").macs
    assert model.plain_macs == plain
    for cost, feature in zip(costs, model._exits.features, strict=True):
        graph = model._exits.graph
        behind = ee.cost.count(keras.Model(graph.inputs, feature), "eenets")
        dense = feature.shape[-1] * (3 + 1)
        assert cost * plain == pytest.approx(behind.macs + dense, abs=1e-6)


@pytest.mark.backends
def test_a_policy_that_looks_back_gets_its_carry():
    entry = ZOO["operations"]
    model = entry.add_exits(policy=Agreement())
    x, _ = entry.batch(4)
    first, second, _ = run_through(model, x)
    whole = model(x)
    both = as_numpy(whole["exit_0"]) + as_numpy(whole["exit_1"])
    np.testing.assert_allclose(as_numpy(second["carry"]), both, atol=1e-6)
    np.testing.assert_allclose(
        as_numpy(second["score"]), both.max(axis=1), atol=1e-6
    )
    assert [x.name for x in model.stages[1].inputs] == ["feature", "carry"]
    for index, stage in enumerate(model.stages):
        check_stage(stage, index, 3)


def test_stages_are_built_when_they_are_needed():
    model = ZOO["tabular_mlp"].add_exits()
    found = model.stages
    assert found._built == [None, None, None]
    last = found[-1]
    assert found._built == [None, None, last]
    assert found[2] is last
    assert len(found) == 3 and len(found[:2]) == 2
    assert [stage.name for stage in found] == [
        f"tabular_mlp_stage_{i}" for i in range(3)
    ]
    with pytest.raises(IndexError):
        found[3]


def test_stage_has_the_current_weights():
    entry = ZOO["tabular_mlp"]
    model = entry.add_exits()
    x, _ = entry.batch(4)
    before = as_numpy(run_through(model, x)[-1]["prediction"])
    kernel = model.net.get_layer("dense_2").kernel
    kernel.assign(kernel + 1.0)
    after = as_numpy(run_through(model, x)[-1]["prediction"])
    assert np.abs(after - before).max() > 0.01
    np.testing.assert_allclose(
        after, as_numpy(model(x)["final"]), rtol=0, atol=1e-6
    )


def hand_made(build):
    inputs = keras.Input((4,), name="row")
    first = layers.Dense(4, name="first")(inputs)
    second = layers.Dense(4, name="second")(first)
    last = layers.Dense(2, "softmax", name="last")(second)
    return keras.Model(inputs, build(inputs, first, second, last))


def exit_of(tensor, index=0):
    prediction, confidence = ee.ExitBlock(2, name=f"exit_{index}")(tensor)
    return {
        f"exit_{index}": prediction,
        f"exit_{index}_confidence": confidence,
    }


def test_where_exits_hang_is_read_off_the_network():
    net = hand_made(
        lambda inputs, first, second, last: {
            "final": last,
            **exit_of(second, 1),
            **exit_of(first, 0),
        }
    )
    exits = exit_graph.read(net)
    assert exits.names == ("exit_0", "exit_1", "final")
    assert exits.layers == ("first", "second")
    assert [[call.name for call in calls] for calls in exits.blocks] == [
        ["exit_0"],
        ["exit_1"],
    ]
    assert [call.name for call in exits.backbone] == ["first", "second", "last"]


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda i, a, b, last: last, "a dict of outputs `exit_0`"),
        (lambda i, a, b, last: {"final": last}, "a dict of outputs"),
        (
            lambda i, a, b, last: {**exit_of(a), "answer": last},
            r"missing are \['final'\]",
        ),
        (
            lambda i, a, b, last: {"exit_0": exit_of(a)["exit_0"], "final": b},
            r"missing are \['exit_0_confidence'\]",
        ),
        (
            lambda i, a, b, last: {
                **exit_of(layers.Concatenate()([a, b])),
                "final": last,
            },
            "'exit_0' to hang on one tensor behind which nothing else",
        ),
        (
            lambda i, a, b, last: {
                **exit_of(layers.ReLU()(a)),
                "final": layers.Add()([last, layers.Dense(2)(i)]),
            },
            "'exit_0' to hang on one tensor",
        ),
    ],
)
def test_networks_that_cannot_be_parted_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        exit_graph.read(hand_made(build))


def test_a_model_without_multiply_adds_is_refused():
    inputs = keras.Input((4,))
    x = layers.ReLU(name="relu")(inputs)
    model = keras.Model(inputs, layers.Softmax()(layers.ReLU()(x)))
    with pytest.raises(ValueError, match="multiply-adds.*can be counted"):
        ee.add_exits(model, exits=["relu"])


def test_names_of_outputs():
    assert exit_graph.exit_name(3) == "exit_3"
    assert exit_graph.confidence_name("exit_3") == "exit_3_confidence"
    graph = surgery.trace(ZOO["tabular_mlp"].add_exits().net)
    assert set(graph.outputs) == {
        *("exit_0", "exit_0_confidence"),
        *("exit_1", "exit_1_confidence"),
        *("final", "final_confidence"),
    }
