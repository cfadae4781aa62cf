"""The model of the run time, against values worked out by hand."""

import math

import numpy as np
import pytest

from keras_earlyexit.cost.measured import Link, Timing
from keras_earlyexit.cost.profiles import DeviceProfile, segment_name
from keras_earlyexit.planning import formulas
from keras_earlyexit.planning.device_times import Device

NAMES = ("exit_0", "exit_1", "final")
MACS = (10, 20, 30)
LINK = Link(bits_per_second=8000, round_trip_seconds=0.5)


def device(scale=1.0, by_macs=False, training=()):
    """Stages of 1, 2 and 3 seconds for each sample, times a scale."""

    def timing(name, each, macs=None):
        seconds = [scale * each * rows for rows in (1, 4)]
        return Timing(name, seconds, macs=macs)

    profile = DeviceProfile(
        name="small",
        batch_sizes=(1, 4),
        stages=[
            timing(name, each, macs)
            for name, each, macs in zip(NAMES, (1, 2, 3), MACS, strict=True)
        ],
        training=[timing(name, each) for name, each in training],
    )
    return Device(profile, NAMES, MACS, by_macs)


def test_stages_that_all_reach():
    shares = formulas.reached((0, 0, 1))
    times = formulas.answering(
        device(), device(0.1), LINK, 4, shares, 0, up=100, down=25
    )
    assert times.edge == pytest.approx(4 * 1)
    assert times.cloud == pytest.approx(4 * 0.1 * (2 + 3))
    assert times.link == pytest.approx(0.5 + 4 * 125 * 8 / 8000)
    assert (times.bytes_up, times.bytes_down) == (400, 100)


def test_who_left_takes_no_time_later():
    shares = formulas.reached((0.5, 0.25, 0.25))
    assert shares == [1.0, 0.5, 0.25]
    times = formulas.answering(
        device(), device(0.1), LINK, 1, shares, 0, up=100, down=25
    )
    assert times.edge == pytest.approx(1)
    assert times.link == pytest.approx(0.5 * (0.5 + 125 * 8 / 8000))
    assert times.cloud == pytest.approx(0.1 * (0.5 * 2 + 0.25 * 3))
    later = formulas.answering(
        device(), device(0.1), LINK, 1, shares, 1, up=100, down=25
    )
    assert later.edge == pytest.approx(1 + 0.5 * 2)
    assert later.bytes_up == pytest.approx(25)


def test_a_batch_goes_up_once_if_anybody_stays():
    shares = formulas.reached((0.5, 0.5, 0))
    times = formulas.answering(
        device(), device(), LINK, 4, shares, 0, up=0, down=0
    )
    assert times.link == pytest.approx((1 - 0.5**4) * 0.5)
    assert times.cloud == pytest.approx(4 * 0.5 * 2)


def test_all_in_one_place():
    shares = formulas.reached((0.5, 0.25, 0.25))
    here = formulas.answering(
        device(), device(), LINK, 1, shares, 2, up=7, down=7
    )
    assert (here.link, here.cloud, here.bytes_up) == (0, 0, 0)
    assert here.edge == pytest.approx(1 + 0.5 * 2 + 0.25 * 3)
    there = formulas.answering(
        device(), device(), LINK, 1, shares, -1, up=1000, down=0
    )
    assert there.edge == 0 and there.link == pytest.approx(0.5 + 1)
    assert there.cloud == pytest.approx(here.edge)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.7, 1.0])
def test_mean_over_how_many_come(share):
    """Against drawing them; a batch of any size takes at least 3 here."""

    def seconds_of(rows):
        return 3 + rows**1.5

    rows = np.random.default_rng(0).binomial(20, share, 200_000)
    drawn = np.where(rows > 0, 3 + rows**1.5, 0).mean()
    assert formulas.expected(seconds_of, 20, share) == pytest.approx(
        drawn, rel=0.01
    )


def test_mean_of_what_grows_in_proportion_is_exact():
    assert formulas.expected(float, 1000, 0.3) == pytest.approx(300)


def test_hierarchical_training_in_a_pipeline():
    edge, cloud = device(), device(0.1)
    period, alone, times = formulas.hierarchical(
        edge, cloud, LINK, 4, 1.0, 0, up=100, pipelined=True
    )
    # Nothing was measured: three times the forward pass.
    assert times.edge == pytest.approx(3 * 4)
    assert times.cloud == pytest.approx(3 * 4 * 0.1 * 5)
    assert times.link == pytest.approx(8 * 400 / 8000)
    assert period == pytest.approx(12)
    assert alone == pytest.approx(4 + max(8, 0.5 + 0.4 + 6))


def test_hierarchical_training_one_batch_at_a_time():
    edge, cloud = device(), device(0.2)
    seconds, alone, times = formulas.hierarchical(
        edge, cloud, LINK, 4, 1.0, 0, up=100, pipelined=False
    )
    expected = 4 + max(8, 0.5 + 0.4 + 3 * 4 * 0.2 * 5)
    assert seconds == alone == pytest.approx(expected)
    assert times.link == pytest.approx(0.9)


def test_less_is_sent_with_a_share():
    _, _, times = formulas.hierarchical(
        device(), device(), LINK, 4, 0.25, 0, up=100, pipelined=True
    )
    assert times.bytes_up == pytest.approx(100)
    assert times.cloud == pytest.approx(3 * 1 * 5)


def test_training_in_one_place():
    period, alone, times = formulas.hierarchical(
        device(), device(), LINK, 4, 0.0, 2, up=100, pipelined=True
    )
    assert period == alone == times.edge == pytest.approx(3 * 4 * 6)
    assert (times.link, times.cloud, times.bytes_up) == (0, 0, 0)
    period, alone, times = formulas.hierarchical(
        device(), device(), LINK, 4, 1.0, -1, up=100, pipelined=True
    )
    assert times.edge == 0 and period == pytest.approx(72)
    assert alone == pytest.approx(72 + 0.5 + 0.4)


def test_split_learning_waits_for_the_gradient():
    seconds, times = formulas.split_learning(
        device(), device(0.1), LINK, 4, 0, up=104, down=100
    )
    assert times.link == pytest.approx(0.5 + 8 * 4 * 204 / 8000)
    assert seconds == pytest.approx(3 * 4 + times.link + 3 * 4 * 0.1 * 5)
    assert (times.bytes_up, times.bytes_down) == (416, 400)


def test_measured_training_steps_go_before_the_rule():
    measured = device(
        training=[(segment_name("exit_0", "exit_0"), 2.5)],
    )
    assert measured.training(0, 0, 4) == pytest.approx(10)
    assert measured.training(0, 1, 4) == pytest.approx(3 * 4 * 3)
    assert measured.has_trained([(0, 0)])
    assert not measured.has_trained([(0, 0), (0, 1)])


def test_a_training_step_takes_at_least_the_forward_pass():
    measured = device(training=[(segment_name("exit_0", "exit_0"), 0.1)])
    assert measured.training(0, 0, 4) == pytest.approx(4)


def test_no_samples_and_no_stages_take_no_time():
    assert device().forward(1, 0, 4) == device().training(1, 0, 4) == 0
    assert device().forward(0, 2, 0) == device().training(0, 2, 0.0) == 0


def test_seconds_by_macs():
    """Of other stages than measured: 10 MACs take a tenth of a second."""
    by_macs = device(by_macs=True)
    assert by_macs.forward(0, 2, 4) == pytest.approx(
        by_macs.profile.predicted_seconds(60, 4)
    )
    assert by_macs.training(0, 1, 1) == pytest.approx(
        3 * by_macs.forward(0, 1, 1)
    )
    whole = device(
        by_macs=True, training=[(segment_name("exit_0", "final"), 12)]
    )
    assert whole.training(0, 1, 4) == pytest.approx(12 * 4 / 2)
    assert math.isclose(whole.training(0, 2, 4), 48)
