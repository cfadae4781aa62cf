"""Profiles as values: what they tell, what they refuse, and as JSON."""

import dataclasses
import json

import numpy as np
import pytest

from keras_earlyexit.cost.measured import Link, Machine, MeasuredCost, Timing
from keras_earlyexit.cost.profiles import DeviceProfile


@pytest.fixture
def profile():
    """One of a device that needs 1 ms a call and 1 ns for every MAC."""

    def timing(name, macs, calls=1):
        seconds = [1e-3 * calls + 1e-9 * macs * size for size in (1, 4, 16)]
        return Timing(
            name=name,
            seconds=seconds,
            p95_seconds=[2 * value for value in seconds],
            joules=[5 * value for value in seconds],
            macs=macs,
        )

    return DeviceProfile(
        name="small",
        batch_sizes=(1, 4, 16),
        stages=[timing("exit_0", 10**6), timing("final", 3 * 10**6)],
        exits=[timing("exit_0", 10**6), timing("final", 4 * 10**6, 3)],
        plain=timing("plain", 4 * 10**6),
        peak_bytes=np.array([100, 200, 300]),
        machine=Machine("Linux", "some chip", 4, "cpu:0", "jax", ["numpy 2"]),
    )


def test_sizes_between_are_interpolated(profile):
    assert profile.seconds("exit_0", 4) == pytest.approx(5e-3)
    assert profile.seconds(0, 2) == pytest.approx(3e-3)
    assert profile.seconds(-1, 10) == pytest.approx(31e-3)


def test_sizes_beyond_are_in_proportion_and_below_as_the_smallest(profile):
    assert profile.seconds("final", 32) == pytest.approx(2 * 49e-3)
    assert profile.seconds("final", 0.5) == pytest.approx(4e-3)


def test_exits_as_measured_or_as_the_sum_of_their_stages(profile):
    assert profile.exit_seconds("final") == pytest.approx(7e-3)
    stages = dataclasses.replace(profile, exits=())
    assert stages.exit_seconds("exit_0") == pytest.approx(2e-3)
    assert stages.exit_seconds("final") == pytest.approx(6e-3)


def test_routing_is_what_the_stages_do_not_explain(profile):
    assert profile.routing_seconds(4) == pytest.approx(1e-3)
    with pytest.raises(ValueError, match="has the time of stages only"):
        dataclasses.replace(profile, exits=()).routing_seconds()


def test_speed_is_that_of_the_largest_batches(profile):
    assert profile.macs_per_second == pytest.approx(4e6 * 16 / 66e-3)


@pytest.mark.parametrize("size", [1, 3, 16])
def test_other_stages_are_predicted_by_their_macs(profile, size):
    macs = np.array([0, 10**6, 10**8])
    found = profile.predicted_seconds(macs, size)
    np.testing.assert_allclose(found, 1e-3 + 1e-9 * macs * size)
    assert profile.predicted_seconds(10**6, size) == pytest.approx(found[1])


def test_one_stage_predicts_in_proportion(profile):
    one = DeviceProfile("one", (2,), [Timing("final", (0.5,), macs=100)])
    assert one.predicted_seconds(300, 2) == pytest.approx(1.5)
    assert one.predicted_seconds(300, 4) == pytest.approx(3.0)


def test_stages_that_contradict_an_overhead_are_without():
    """The larger stage took less: no line through them could be believed."""
    stages = [Timing("a", (2.0,), macs=100), Timing("b", (1.0,), macs=200)]
    found = DeviceProfile("odd", (1,), stages).predicted_seconds([0, 1000])
    assert found[0] == 0
    # Relative least squares of 0.02 and 0.005 seconds for a MAC.
    slope = (100 / 2 + 200 / 1) / ((100 / 2) ** 2 + (200 / 1) ** 2)
    assert found[1] == pytest.approx(1000 * slope)


def test_prediction_needs_macs(profile):
    unknown = DeviceProfile("bundle", (1,), [Timing("final", (0.5,))])
    assert unknown.macs_per_second is None
    with pytest.raises(ValueError, match="whose MACs are known.*'bundle'"):
        unknown.predicted_seconds(10)
    for macs in (-1, float("nan"), [1, float("inf")]):
        with pytest.raises(ValueError, match="finite and at least 0"):
            profile.predicted_seconds(macs)


def test_cost_of_exits_over_the_plain_model(profile):
    cost = profile.cost_of_exits()
    assert (cost.unit, cost.batch_size) == ("milliseconds", 1)
    assert cost.exits == pytest.approx([2, 7]) and cost.plain == 5
    assert cost.relative_costs == pytest.approx([0.4, 1.4])
    cost = profile.cost_of_exits("joules", 4)
    assert cost.exits == pytest.approx([0.025, 0.095])


def test_cost_of_exits_needs_them_measured(profile):
    for missing in ({"exits": ()}, {"plain": None}):
        with pytest.raises(ValueError, match="seconds to each exit"):
            dataclasses.replace(profile, **missing).cost_of_exits()
    plain = dataclasses.replace(profile.plain, joules=None)
    with pytest.raises(ValueError, match="joules to each exit"):
        dataclasses.replace(profile, plain=plain).cost_of_exits("joules")
    with pytest.raises(ValueError, match="'milliseconds' or 'joules'.*'watt'"):
        profile.cost_of_exits("watt")


def test_exits_must_cost_more_and_more():
    with pytest.raises(ValueError, match=r"than the one before.*\[1.0, 1.0\]"):
        MeasuredCost("milliseconds", 1, (1, 1), 2)


@pytest.mark.parametrize("wrong", ["exit_1", 2, -3, None, 0.0])
def test_unknown_stage_is_refused(profile, wrong):
    with pytest.raises(ValueError, match="Expected one of exit_0, final"):
        profile.seconds(wrong)


@pytest.mark.parametrize("size", [0, -1, float("nan"), float("inf"), "1"])
def test_batch_size_must_be_a_number_above_0(profile, size):
    with pytest.raises((TypeError, ValueError), match="`batch_size`"):
        profile.seconds(0, size)


def test_table_shows_every_size(profile):
    lines = str(profile).splitlines()
    assert lines[0] == "small on some chip (jax, cpu:0), milliseconds:"
    table = {line[:20].strip(): line[20:].split() for line in lines[1:]}
    assert table["samples in a batch"] == ["1", "4", "16"]
    assert table["stage final"] == ["4.000", "13.000", "49.000"]
    assert table["up to exit_0"] == ["2.000", "5.000", "17.000"]
    assert table["routing itself"] == ["1.000", "1.000", "1.000"]
    assert len({len(line) for line in lines[1:]}) == 1


def test_json_round_trip(profile, tmp_path):
    assert DeviceProfile.from_json(profile.to_json()) == profile
    profile.save(tmp_path / "device.json")
    assert DeviceProfile.load(tmp_path / "device.json") == profile
    assert DeviceProfile.load(str(tmp_path / "device.json")) == profile
    assert [path.name for path in tmp_path.iterdir()] == ["device.json"]
    least = DeviceProfile("least", (1,), [Timing("final", (0.1,))])
    assert DeviceProfile.from_json(least.to_json().encode()) == least
    with pytest.raises(FileNotFoundError):
        DeviceProfile.load(tmp_path / "none.json")


def test_a_file_stays_whole_when_writing_fails(profile, tmp_path, monkeypatch):
    path = tmp_path / "device.json"
    path.write_text("before")
    monkeypatch.setattr("os.fsync", lambda handle: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        profile.save(path)
    assert path.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["device.json"]


def put(content, path, value):
    for key in path[:-1]:
        content = content[key]
    content[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], "bundle", "JSON of format"),
        (["format"], ["x"], "JSON of format"),
        (["version"], 2, "version 1. Received: version 2"),
        (["version"], True, "version True"),
        (["extra"], 1, "the keys"),
        (["name"], 3, "`name` to be text"),
        (["batch_sizes"], [], "batch sizes that rise"),
        (["batch_sizes"], [4, 1, 16], "batch sizes that rise"),
        (["batch_sizes"], [1, 1, 16], "batch sizes that rise"),
        (["batch_sizes"], [0, 4, 16], "at least 1"),
        (["batch_sizes"], [1.0, 4, 16], "an integer"),
        (["batch_sizes"], [True, 4, 16], "an integer"),
        (["batch_sizes"], {"a": 1}, "a sequence of values"),
        (["batch_sizes"], [1, 4], "each of the 2 batch sizes"),
        (["batch_sizes"], list(range(1, 20_000)), "at most 10000 values"),
        (["stages"], {}, "'stages' to be a list"),
        (["stages"], [], "at least one stage"),
        (["stages", 0], 3, "a JSON object"),
        (["stages", 0], {"name": "exit_0"}, "the keys"),
        (["stages", 0, "seconds"], [1, 2, float("nan")], "finite"),
        (["stages", 0, "seconds"], [1, 2, float("inf")], "finite"),
        (["stages", 0, "seconds"], [1, 2, 10**400], "finite"),
        (["stages", 0, "seconds"], [1, 2, -3], "at least 0"),
        (["stages", 0, "seconds"], [1, 2, 0], "above 0"),
        (["stages", 0, "seconds"], [1, 2, "3"], "a number"),
        (["stages", 0, "seconds"], None, "a sequence"),
        (["stages", 0, "joules"], [1, 2], "each of the 3 batch sizes"),
        (["stages", 0, "macs"], -1, "at least 0"),
        (["stages", 0, "macs"], 2**63, "at least 0"),
        (["exits", 1, "p95_seconds"], [1], "each of the 3 batch sizes"),
        (["plain"], [], "a JSON object"),
        (["plain", "name"], None, "text"),
        (["peak_bytes"], [1, 2], "each of the 3 batch sizes"),
        (["machine", "cpu_count"], 0, "at least 1"),
        (["machine", "versions"], "numpy", "a sequence"),
        (["machine"], {"platform": "Linux"}, "the keys"),
    ],
)
def test_foreign_json_is_looked_at(profile, path, value, message):
    content = json.loads(profile.to_json())
    put(content, path, value)
    with pytest.raises((TypeError, ValueError), match=message):
        DeviceProfile.from_json(json.dumps(content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "in JSON"),
        ("{", "in JSON"),
        ("[" * 100_000, "in JSON"),
        ("1" * 5_000, "in JSON"),
        (b"\xff\xfe\x00", "in JSON"),
        ("[]", "JSON of format"),
        ("null", "JSON of format"),
        (" " * 2**23, "at most"),
        ({"format": 1}, "JSON text or bytes"),
    ],
)
def test_what_is_no_profile_is_refused(content, message):
    with pytest.raises((TypeError, ValueError), match=message):
        DeviceProfile.from_json(content)


def test_no_more_of_a_file_is_read_than_may_be(tmp_path):
    path = tmp_path / "large.json"
    path.write_text(" " * 2**23)
    with pytest.raises(ValueError, match="at most 4194304 bytes"):
        DeviceProfile.load(path)


def test_profiles_and_links_are_frozen(profile):
    for value, field in ((profile, "name"), (Link(1, 0), "bits_per_second")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, 1)
    assert hash(profile) == hash(DeviceProfile.from_json(profile.to_json()))


def test_link_takes_a_round_trip_and_the_bits():
    link = Link(bits_per_second=8e6, round_trip_seconds=0.02)
    assert link.seconds(0) == pytest.approx(0.02)
    assert link.seconds(500_000) == pytest.approx(0.52)


@pytest.mark.parametrize(
    "values", [(0, 0), (-1, 0), (1, -1), (float("nan"), 0), (1, float("inf"))]
)
def test_impossible_link_is_refused(values):
    with pytest.raises(ValueError, match="Expected `.*Received"):
        Link(*values)


def test_link_takes_numbers():
    with pytest.raises(TypeError, match="`bits_per_second` to be a number"):
        Link("1e6", 0)
    with pytest.raises(TypeError, match="`num_bytes` to be a number"):
        Link(1e6, 0).seconds(None)
    with pytest.raises(ValueError, match="`num_bytes`"):
        Link(1e6, 0).seconds(-1)
