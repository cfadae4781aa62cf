"""Whether two sides hold parts of the same model."""

import dataclasses
import types

import pytest

from protos import split_pb2
from protos.errors import VersionMismatch, WireError
from protos.identity import (
    PROTOCOL,
    Feature,
    Identity,
    differences,
    mismatch,
    protocol_differences,
)

INF = float("inf")
IMAGE = Feature("image", (None, 8, 8, 1), "uint8")
FIRST = Feature("feature", (None, 4, 4, 2), "float32")
SECOND = Feature("feature", (None, 2), "float32")
CARRY = Feature("carry", (None, 1), "int32")
ANSWER = Feature("prediction", (None, 3), "float32")
SCORE = Feature("score", (None,), "float32")


def stage(index, inputs, outputs):
    return types.SimpleNamespace(index=index, inputs=inputs, outputs=outputs)


STAGES = (
    stage(0, (IMAGE,), (CARRY, FIRST, ANSWER, SCORE)),
    stage(1, (FIRST, CARRY), (ANSWER, SCORE, SECOND)),
    stage(2, (SECOND,), (ANSWER,)),
)


def manifest_of(stages=STAGES, **changes):
    """What `Identity.of` looks at in a manifest."""
    values = {
        "model_name": "small",
        "weights_sha256": "a" * 64,
        "policy": {"name": "learned", "config": {"b": 1, "a": 2}},
        "thresholds": (0.5, INF),
        "exit_names": ("exit_0", "exit_1", "final"),
        "relative_costs": (0.25, 0.5, 1.01),
        "stages": stages,
    }
    return types.SimpleNamespace(**{**values, **changes})


def test_the_edge_and_the_cloud_of_one_export_agree():
    edge = Identity.of(manifest_of(STAGES[:1]))
    assert (edge.first_stage, edge.feature) == (1, (FIRST, CARRY))
    for stages in (STAGES[1:], STAGES):
        cloud = Identity.of(manifest_of(stages), first_stage=1)
        assert edge == cloud
        assert differences(edge, cloud) == ()


def test_raw_input_enters_stage_0():
    edge = Identity.of(manifest_of(STAGES[:1]), first_stage=0)
    assert edge.feature == (IMAGE,)
    assert edge == Identity.of(manifest_of(), first_stage=0)


@pytest.mark.parametrize(
    ("stages", "first_stage"),
    [(STAGES, None), (STAGES, 3), (STAGES[1:], 0), (STAGES[:1], 2)],
)
def test_stages_that_are_not_there(stages, first_stage):
    with pytest.raises(ValueError, match="first_stage=.*`cut`"):
        Identity.of(manifest_of(stages), first_stage)


def test_the_generation_is_a_name_that_differs_with_everything():
    changes = [
        {},
        {"model_name": "other"},
        {"weights_sha256": "b" * 64},
        {"thresholds": (0.6, INF)},
        {"thresholds": (0.5, -INF)},
        {"exit_names": ("exit_0", "exit_9", "final")},
        {"relative_costs": (0.25, 0.6, 1.01)},
        {"policy": {"name": "entropy", "config": {}}},
    ]
    found = {Identity.of(manifest_of(**x), 1).generation for x in changes}
    found.add(Identity.of(manifest_of(), 2).generation)
    assert len(found) == len(changes) + 1
    assert "small@aaaaaaaaaaaa." in Identity.of(manifest_of(), 1).generation


def test_the_order_of_a_config_does_not_matter():
    policy = {"config": {"a": 2, "b": 1}, "name": "learned"}
    one, other = manifest_of(policy=policy), manifest_of()
    assert Identity.of(one, 1) == Identity.of(other, 1)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"model_name": "other"}, "model"),
        ({"weights_sha256": "b" * 64}, "weights"),
        ({"policy_sha256": "b" * 64}, "policy"),
        ({"first_stage": 2}, "first stage"),
        ({"feature": (SECOND,)}, "features"),
    ],
)
def test_each_difference_has_both_values_and_a_fix(change, what):
    edge = Identity.of(manifest_of(STAGES[:1]))
    cloud = dataclasses.replace(edge, **change)
    (found,) = differences(edge, cloud)
    assert found.what == what and found.edge != found.cloud
    error = mismatch([found])
    assert isinstance(error, VersionMismatch)
    assert error.differences == (found,)
    for text in (found.what, found.edge, found.cloud, found.fix):
        assert text in str(error)


def test_differences_of_a_reply_get_their_fix_here():
    reply = split_pb2.Difference(what="weights", edge="a", cloud="b")
    assert "`cut`" in str(mismatch([reply]))
    odd = split_pb2.Difference(what="x" * 9999, edge="y" * 9999)
    assert len(str(mismatch([odd]))) < 1000
    assert "Received" in str(mismatch([]))


def test_another_major_version_refuses_and_another_minor_works():
    major, minor = PROTOCOL
    assert protocol_differences((major, minor + 7)) == ()
    (found,) = protocol_differences((major + 1, 0))
    assert (found.edge, found.cloud) == (f"{major + 1}.0", f"{major}.{minor}")


def test_a_hello_says_it_all():
    open_size = Feature("carry", (None, None, 2), "float32")
    edge = Identity.of(manifest_of(STAGES[:1]))
    edge = dataclasses.replace(edge, feature=(FIRST, open_size))
    hello = edge.hello(edge_id="edge-1", mode=split_pb2.INFER)
    hello = split_pb2.HelloRequest.FromString(hello.SerializeToString())
    assert Identity.of_hello(hello) == edge
    assert (hello.protocol_major, hello.protocol_minor) == PROTOCOL
    assert hello.edge_id == "edge-1"


@pytest.mark.parametrize(
    "change",
    [
        {"weights_sha256": ""},
        {"weights_sha256": "a" * 63 + "\n"},
        {"policy_sha256": "g" * 64},
        {"model_name": "x" * 300},
        {"features": [split_pb2.TensorSpec(name="x" * 300)]},
        {"features": [split_pb2.TensorSpec(shape=[1] * 7)]},
        {"features": [split_pb2.TensorSpec()] * 9},
    ],
)
def test_a_hello_that_cannot_be_right(change):
    hello = Identity.of(manifest_of(), 1).hello()
    for name in change:
        hello.ClearField(name)
    hello.MergeFrom(split_pb2.HelloRequest(**change))
    with pytest.raises(WireError, match="hello"):
        Identity.of_hello(hello)
