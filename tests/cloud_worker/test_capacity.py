"""The simulation of a worker, against what is known of queues."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_worker import cli
from cloud_worker.capacity import planning
from cloud_worker.capacity.simulation import Setting, simulate
from keras_earlyexit.capacity.service import Service
from keras_earlyexit.capacity.traffic import Traffic
from keras_earlyexit.cost.measured import Link

# 1 ms alone, 16 ms for a batch of 64, 0.25 ms for the call.
SERVICE = Service("small", (1, 64), (0.001, 0.016), 0.00025, bytes_up=1000)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_waits_of_a_queue_with_one_kind_of_service(load):
    """M/D/1: the mean wait is load * service / (2 (1 - load))."""
    service_s = 0.01
    service = Service("one", (1,), (service_s,), 0.0)
    setting = Setting(service, 1e6, max_batch=1, max_queue=10**6, workers=1)
    traffic = Traffic(20, load / service_s / 20, 60.0 / load, seed=3)
    found = simulate(setting, traffic)
    wanted = load * service_s / (2 * (1 - load))
    assert found.waits.mean() == pytest.approx(wanted, rel=0.15)
    assert found.used["stages"] == pytest.approx(load, rel=0.05)


@settings(max_examples=25, deadline=None)
@given(
    edges=st.integers(1, 10),
    rate=st.sampled_from((1.0, 20.0, 100.0)),
    burst_factor=st.sampled_from((1.0, 6.0)),
    cores=st.integers(1, 3),
    workers=st.integers(1, 2),
    max_batch=st.sampled_from((1, 8)),
    max_queue=st.sampled_from((8, 64)),
    max_delay_s=st.sampled_from((0.0, 0.01)),
    deadline_s=st.sampled_from((0.004, 0.5)),
    until_s=st.sampled_from((None, 0.2)),
)
def test_no_call_is_lost_or_counted_twice(
    edges, rate, burst_factor, until_s, **options
):
    link = Link(1e6, 0.001)
    setting = Setting(SERVICE, link=link, **options)
    found = simulate(setting, Traffic(edges, rate, 0.4, burst_factor), until_s)
    ended = found.answered + found.rejected + found.past_deadline
    assert found.offered == ended + found.in_flight
    assert found.in_flight >= 0
    if until_s is None:
        assert found.in_flight == 0
    assert (found.latencies <= setting.deadline_s).all()
    # What a call takes when nothing else is going on.
    alone = 0.008 + 0.001 + SERVICE.call_seconds + SERVICE.seconds(1)
    assert (found.latencies >= alone * 0.999).all()
    assert (found.batch_rows <= setting.max_batch).all()
    assert all(0 <= x <= 1 + 1e-9 for x in found.used.values())
    assert found.answered <= found.batch_rows.sum() <= found.offered


def test_full_batches_where_there_is_too_much():
    setting = Setting(SERVICE, max_queue=256)
    found = simulate(setting, Traffic(400, 10.0, 1.0))
    ideal = SERVICE.rows_per_core_second(64)
    assert found.rejected > 0
    assert found.used["cores"] == pytest.approx(1, rel=0.01)
    # Those who are turned away cost as well.
    assert 0.5 * ideal < found.answered_per_second < ideal


def test_a_second_core_takes_the_event_loop():
    traffic = Traffic(400, 10.0, 0.5)
    one, two, four = (
        simulate(Setting(SERVICE, cores=n, max_queue=256, workers=1), traffic)
        for n in (1, 2, 4)
    )
    assert two.answered_per_second > 1.5 * one.answered_per_second
    # One loop and one thread cannot use more.
    assert four.answered == two.answered


@pytest.mark.parametrize(
    "options, wanted",
    [
        ({"shared_bits_per_second": 1e6}, "shared link"),
        ({"cores": 2, "workers": 1}, "stages"),
        ({}, "cores"),
    ],
)
def test_what_is_busiest(options, wanted):
    found = simulate(Setting(SERVICE, **options), Traffic(100, 10.0, 1.0))
    assert found.bottleneck == wanted


def test_most_edges_are_just_enough():
    setting, traffic = Setting(SERVICE, 0.1), Traffic(1, 5.0, 80.0)
    most = planning.most_edges(setting, traffic)
    assert planning.point(setting, most, 0.04).in_time >= 0.999
    more = simulate(setting, Traffic(int(1.2 * most.edges), 5.0, 1.0))
    assert more.load > 1
    # The answer comes before anything can be done for it.
    never = Setting(SERVICE, 0.001)
    assert planning.most_edges(never, traffic) is None


def test_no_more_edges_than_the_link_carries():
    # 8,000 bits a call: at most 125 calls a second, however patient they are.
    setting = Setting(SERVICE, 1.0, shared_bits_per_second=1e6)
    most = planning.most_edges(setting, Traffic(1, 1.0, 100.0))
    assert 90 < most.edges <= 130


def test_price_of_a_million_answers():
    found = planning.point(Setting(SERVICE, cores=2), Traffic(10, 10.0, 5.0), 3)
    answers_per_hour = 3600 * found.answered_per_second
    assert found.cost_per_million == pytest.approx(2 * 3e6 / answers_per_hour)


@pytest.fixture
def file(tmp_path):
    SERVICE.save(tmp_path / "service.json")
    return str(tmp_path / "service.json")


def test_command_says_how_many_edges_there_may_be(file, tmp_path, capsys):
    picture = tmp_path / "capacity.png"
    arguments = ["capacity", "--service", file, "--edges", "10,5000"]
    arguments += ["--calls", "400", "--deadline", "0.2"]
    assert cli.main([*arguments, "--json", "--plot", str(picture)]) == 0
    facts = json.loads(capsys.readouterr().out)
    few, many = facts["points"]
    assert few["in_time"] == 1 > many["in_time"]
    assert 10 < facts["most"]["edges"] < 5000
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert cli.main(arguments) == 0
    assert f"{facts['most']['edges']:,}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flag, value, status",
    [
        ("--edges", "ten", 2),
        ("--edges", "0", 2),
        ("--rate", "-1", 2),
        ("--service", "nowhere.json", 4),
        ("--service", __file__, 4),
    ],
)
def test_command_says_what_is_wrong(file, capsys, flag, value, status):
    arguments = ["capacity", "--service", file, flag, value]
    assert cli.main(arguments) == status
    assert "Expected" in capsys.readouterr().err
