"""Generations: who may enter where, and how long older ones stay."""

import dataclasses

import pytest
from calling.serving import make_bundles

from cloud_worker.batching import Queue
from cloud_worker.generations import Registry, build
from keras_earlyexit.bundle.answering import Bundle
from keras_earlyexit.bundle.specs import TensorSpec
from protos.errors import VersionMismatch
from protos.identity import Identity

EDGE, CLOUD, WHOLE = make_bundles()


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def make(bundle, source="here", raw_input=False, **options):
    options = {"max_message_bytes": None, "max_batch": 64, **options}
    return build(
        source,
        bundle,
        queue=lambda: Queue(100, 64),
        raw_input=raw_input,
        **options,
    )


def weights(name):
    """The cloud's segment with other weights."""
    return make_bundles(weights=name)[1]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def registry(clock):
    return Registry(drain_s=10.0, max_generations=3, clock=clock)


def test_a_segment_is_entered_at_each_of_its_stages(registry):
    generation = make(CLOUD)
    registry.add(generation)
    assert sorted(generation.entrances) == [1, 2]
    entrance = registry.find(Identity.of(EDGE.manifest).generation)
    assert entrance.identity == Identity.of(EDGE.manifest)
    assert len(entrance.bundle.stages) == 2
    assert len(generation.entrances[2].bundle.stages) == 1
    assert generation.name == entrance.identity.generation[:-2]


@pytest.mark.parametrize(("raw_input", "stages"), [(False, 2), (True, 3)])
def test_raw_input_only_where_it_is_allowed(raw_input, stages):
    assert len(make(WHOLE, raw_input=raw_input).entrances) == stages


def test_a_bundle_that_cannot_be_entered_is_an_error():
    with pytest.raises(ValueError, match="--allow-raw-input"):
        make(EDGE)
    assert list(make(EDGE, raw_input=True).entrances) == [0]


def test_text_does_not_cross():
    first, *others = WHOLE.manifest.stages
    text = TensorSpec("x", (None, 1), "string")
    manifest = dataclasses.replace(
        WHOLE.manifest,
        stages=(dataclasses.replace(first, inputs=(text,)), *others),
    )
    bundle = Bundle(manifest, WHOLE.stages, "0" * 64)
    assert list(make(bundle, raw_input=True).entrances) == [1, 2]


def test_limits_stay_below_the_largest_message():
    limits = make(CLOUD).entrances[1].limits
    assert limits.max_rows == 64
    at_most = limits.max_message_bytes - 1
    lower = make(CLOUD, max_message_bytes=at_most).entrances[1].limits
    assert lower.max_rows == 63 and lower.max_message_bytes <= at_most
    with pytest.raises(ValueError, match="one row fits a message of 1000"):
        make(CLOUD, max_message_bytes=1000)


def test_unknown_generations_are_refused_with_what_there_is(registry):
    registry.add(make(CLOUD))
    with pytest.raises(VersionMismatch) as error:
        registry.find("another@0.0.1")
    (found,) = error.value.differences
    assert found.what == "generation" and found.edge == "another@0.0.1"
    assert all(name in found.cloud for name in registry.names)
    with pytest.raises(VersionMismatch):
        registry.find("x" * 10_000)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"weights_sha256": "f" * 64}, "weights"),
        ({"policy_sha256": "f" * 64}, "policy"),
        ({"model_name": "another"}, "model"),
        ({"feature": ()}, "features"),
    ],
)
def test_what_does_not_match_is_named(change, what, registry):
    registry.add(make(CLOUD))
    identity = Identity.of(EDGE.manifest)
    entrance, found = registry.match(identity)
    assert entrance.identity == identity and found == ()
    other = dataclasses.replace(identity, **change)
    entrance, found = registry.match(other)
    assert entrance is None
    assert [x.what for x in found] == [what] and found[0].fix


def test_the_closest_is_compared_with(registry):
    registry.add(make(weights("1")))
    registry.add(make(CLOUD))
    identity = dataclasses.replace(
        Identity.of(EDGE.manifest), policy_sha256="f" * 64
    )
    (found,) = registry.match(identity)[1]
    assert found.what == "policy"


def test_an_older_generation_goes_once_it_is_idle(registry, clock):
    older, newer = make(CLOUD), make(weights("1"))
    registry.add(older)
    name = Identity.of(EDGE.manifest).generation
    assert registry.add(newer) == []
    assert registry.find(name).generation is older and not older.is_current
    with registry.using(registry.find(name)):
        clock.now = 50.0
        assert registry.expire() == []
    clock.now = 59.0
    assert registry.expire() == []
    clock.now = 60.0
    assert registry.expire() == [older]
    assert registry.generations == (newer,)
    clock.now = 1000.0
    assert registry.expire() == []
    with pytest.raises(VersionMismatch):
        registry.find(name)


def test_only_so_many_generations_are_kept(registry):
    made = [make(weights(name)) for name in "1234"]
    gone = [registry.add(generation) for generation in made]
    assert gone == [[], [], [], [made[0]]]
    other = make(weights("5"), source="elsewhere")
    assert registry.add(other) == []
    assert registry.generations == (*made[1:], other)


def test_the_same_model_again_takes_over(registry, clock):
    older, newer = make(CLOUD), make(CLOUD)
    registry.add(older)
    registry.add(newer)
    for name in registry.names:
        assert registry.find(name).generation is newer
    clock.now = 11.0
    assert registry.expire() == [older]
    assert len(registry.names) == 2
