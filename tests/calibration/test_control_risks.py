"""Several risks at once, and thresholds for each exit: rules and guarantees."""

import numpy as np
import pytest
from scipy import stats

from keras_earlyexit.calibration import Risk, control_risk, control_risks

METHODS = ("empirical", "crc", "ucb", "ucb_hb", "ltt")
INF = float("inf")
THRESHOLDS = np.array([0.9, 0.7, 0.5, 0.3])


def some_rows(counts, n=1000):
    """Losses (n, L): 1 in `counts[j]` rows of column j, here and there."""
    rank = np.random.default_rng(0).permutation(n)[:, None]
    return (rank < np.asarray(counts)).astype("float64")


def falling(counts, epsilon=0.1, **options):
    return Risk(some_rows(counts), epsilon, **options)


def growing(counts, epsilon=0.5, **options):
    return Risk(some_rows(counts), epsilon, grows=True, **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ascending", [False, True])
def test_one_risk_is_that_of_control_risk(method, ascending):
    order = slice(None, None, -1 if ascending else 1)
    losses = some_rows([0, 20, 60, 300])[:, order]
    thresholds = THRESHOLDS[order]
    found = control_risks([(losses, 0.1)], thresholds, method=method)
    assert found.threshold == control_risk(
        losses, thresholds, 0.1, method=method
    )
    assert thresholds[found.index] == found.threshold == 0.5
    np.testing.assert_array_equal(found.admissible, thresholds >= 0.5)


@pytest.mark.parametrize("method", METHODS)
def test_all_risks_of_one_direction_must_be_admissible(method):
    risks = [falling([0, 0, 0, 300]), falling([0, 20, 300, 300], name="other")]
    found = control_risks(risks, THRESHOLDS, method=method)
    assert found.threshold == 0.7
    np.testing.assert_array_equal(
        found.admissible_by_risk,
        [[True, True, True, False], [True, True, False, False]],
    )
    # Each at the whole delta: as strict as the stricter one alone.
    alone = [
        control_risk(risk.losses, THRESHOLDS, 0.1, method=method)
        for risk in risks
    ]
    assert found.threshold == max(alone)


@pytest.mark.parametrize("method", ["empirical", "ucb", "ucb_hb", "ltt"])
def test_opposite_risks_meet_in_the_middle(method):
    risks = [falling([0, 10, 20, 300]), growing([900, 300, 200, 0])]
    found = control_risks(risks, THRESHOLDS, method=method)
    np.testing.assert_array_equal(found.admissible, [False, True, True, False])
    assert found.threshold == 0.5
    cheapest = control_risks(
        risks, THRESHOLDS, method=method, costs=[4, 1, 2, 3]
    )
    assert (cheapest.threshold, cheapest.index) == (0.7, 1)


@pytest.mark.parametrize("method", ["empirical", "ucb", "ucb_hb", "ltt"])
def test_nothing_may_be_left(method):
    risks = [falling([0, 300, 300, 300]), growing([900, 900, 300, 0])]
    found = control_risks(risks, THRESHOLDS, method=method)
    assert found.threshold == INF and found.index is None
    assert not found.admissible.any()
    np.testing.assert_array_equal(
        found.admissible_by_risk,
        [[True, False, False, False], [False, False, True, True]],
    )


def test_each_walk_stops_at_its_first_failure():
    risks = [falling([0, 300, 0, 0]), growing([0, 0, 900, 0])]
    found = control_risks(risks, THRESHOLDS)
    np.testing.assert_array_equal(
        found.admissible_by_risk,
        [[True, False, False, False], [False, False, False, True]],
    )


def test_opposite_directions_share_delta_and_equal_ones_do_not():
    # 119 samples without a loss vouch for 0.02 at delta 0.1, not at 0.05.
    none = np.zeros((119, 1))
    same = [Risk(none, 0.02), Risk(none, 0.02)]
    assert control_risks(same, [0.5]).threshold == 0.5
    opposite = [Risk(none, 0.02), Risk(none, 0.9, grows=True)]
    assert control_risks(opposite, [0.5]).threshold == INF
    assert control_risks(opposite, [0.5], delta=0.2).threshold == 0.5


ROWS = np.array([[INF, INF], [0.9, 0.8], [0.9, 0.5], [0.4, 0.5]])


@pytest.mark.parametrize("method", METHODS)
def test_rows_are_walked_as_they_come(method):
    losses = some_rows([0, 20, 40, 300])
    found = control_risk(losses, ROWS, 0.1, method=method)
    assert found == (0.9, 0.5)
    assert control_risks([(losses, 0.1)], ROWS, method=method).index == 2
    gap = some_rows([0, 300, 0, 0])
    assert control_risk(gap, ROWS, 0.1, method=method) == (INF, INF)
    anywhere = control_risk(gap, ROWS, 0.1, method=method, assume_monotone=True)
    crosses = method in ("empirical", "crc")
    assert anywhere == ((0.4, 0.5) if crosses else (INF, INF))
    nothing = some_rows([300, 0, 0, 0])
    assert control_risk(nothing, ROWS, 0.1, method=method) == (INF, INF)


@pytest.mark.parametrize("method", ["empirical", "ucb", "ucb_hb", "ltt"])
def test_rows_need_not_be_nested_for_sequential_tests(method):
    rows = [[0.9, 0.2], [0.2, 0.9], [0.5, 0.5]]
    losses = some_rows([0, 20, 300])
    assert control_risk(losses, rows, 0.1, method=method) == (0.2, 0.9)
    with pytest.raises(ValueError, match="may be above that of the row before"):
        control_risk(losses, rows, 0.1, method="crc")
    with pytest.raises(ValueError, match=r"rows 0 and 1.*np.minimum"):
        control_risks([(losses, 0.1)], rows, method="crc")


class Population:
    """Two exits on 20,000 samples, drawn from with replacement."""

    costs = np.array([0.3, 0.6, 1.0])

    def __init__(self, seed=5):
        generator = np.random.default_rng(seed)
        size = 20_000
        easy = generator.random((size, 1))
        self.scores = np.clip(
            easy + generator.normal(size=(size, 2)) * [0.2, 0.1], 0, 1
        )
        # The second exit is wrong less often, and both on hard samples.
        wrong = generator.random((size, 2)) < [0.5, 0.25] * (1 - easy) ** 2
        self.gap = np.concatenate([wrong, np.zeros((size, 1))], axis=1)

    def measure(self, thresholds):
        """Losses and scaled costs (size, L) at rows of thresholds."""
        leaves = self.scores[:, None, :] > thresholds
        taken = np.where(leaves.any(axis=2), leaves.argmax(axis=2), 2)
        gap = np.take_along_axis(self.gap, taken, axis=1)
        return gap, (self.costs[taken] - 0.3) / 0.7


@pytest.fixture(scope="module")
def population():
    return Population()


def shared(thresholds):
    return np.repeat(thresholds[:, None], 2, axis=1)


@pytest.mark.parametrize("method", ["ucb", "ucb_hb", "ltt"])
def test_both_risks_are_kept_as_promised(population, method):
    rows = shared(np.linspace(1.05, 0.0, 43))
    gap, cost = population.measure(rows)
    gaps, costs = gap.mean(axis=0), cost.mean(axis=0)
    epsilon, level = 0.06, 0.55
    generator = np.random.default_rng(0)
    wrong = answered = 0
    for _ in range(300):
        draw = generator.integers(len(gap), size=500)
        found = control_risks(
            [Risk(gap[draw], epsilon), Risk(cost[draw], level, grows=True)],
            rows,
            method=method,
        )
        if found.index is not None:
            answered += 1
            wrong += gaps[found.index] > epsilon or costs[found.index] > level
    assert wrong <= stats.binom.ppf(0.999, 300, 0.1)
    assert answered > 100


@pytest.mark.parametrize("method", ["ucb", "ltt"])
def test_what_cannot_be_met_is_rarely_promised(population, method):
    rows = shared(np.linspace(1.05, 0.0, 43))
    gap, cost = population.measure(rows)
    gaps, costs = gap.mean(axis=0), cost.mean(axis=0)
    # At no threshold are both in reach, but nearly so.
    epsilon = float(gaps[20]) * 0.999
    level = float(costs[20]) * 0.999
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(300):
        draw = generator.integers(len(gap), size=500)
        risks = [Risk(gap[draw], epsilon), Risk(cost[draw], level, grows=True)]
        wrong += control_risks(risks, rows, method=method).index is not None
    assert wrong <= stats.binom.ppf(0.999, 300, 0.1)
    naive = control_risks(
        [Risk(gap, epsilon * 1.01), Risk(cost, level * 1.01, grows=True)],
        rows,
        method="empirical",
    )
    assert naive.index == 20


@pytest.mark.parametrize("method", ["ucb", "ucb_hb", "ltt"])
def test_rows_in_any_order_keep_the_guarantee(population, method):
    # From careful to careless with detours: the risk goes up and down.
    level = np.linspace(1.0, 0.0, 40)
    rows = np.stack([level, level + 0.3 * np.sin(np.arange(40))], axis=1)
    gap, _ = population.measure(rows)
    risks = gap.mean(axis=0)
    assert np.any(np.diff(risks) < -1e-4)
    generator = np.random.default_rng(0)
    chosen = []
    for _ in range(300):
        draw = generator.integers(len(gap), size=300)
        found = control_risks([(gap[draw], 0.08)], rows, method=method)
        chosen.append(0.0 if found.index is None else risks[found.index])
    assert np.sum(np.array(chosen) > 0.08) <= stats.binom.ppf(0.999, 300, 0.1)
    assert np.mean(chosen) > 0.02


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: control_risks([], [0.5]), "at least one risk"),
        (
            lambda: control_risks(
                [falling([0] * 4), falling([0] * 3)], THRESHOLDS
            ),
            "same shape",
        ),
        (
            lambda: control_risks(
                [falling([0] * 4), growing([0] * 4, name="cost")],
                THRESHOLDS,
                method="crc",
            ),
            r"\('cost', True\)",
        ),
        (
            lambda: control_risks(
                [falling([0] * 4, epsilon=1.5, name="gap")], THRESHOLDS
            ),
            "'gap'",
        ),
        (
            lambda: control_risks([falling([0] * 4, bound=0)], THRESHOLDS),
            "`bound`",
        ),
        (
            lambda: control_risks([(np.full((5, 4), 2.0), 0.1)], THRESHOLDS),
            r"lie in \[-1.0, 1.0\]",
        ),
        (
            lambda: control_risks([falling([0] * 4)], THRESHOLDS, delta=0),
            "`delta`",
        ),
        (
            lambda: control_risks([falling([0] * 4)], THRESHOLDS, method="wsr"),
            "`method`",
        ),
        (
            lambda: control_risks([falling([0] * 4)], THRESHOLDS, costs=[1]),
            "same length",
        ),
        (lambda: control_risk(some_rows([0] * 2), ROWS, 0.1), "transpose"),
        (
            lambda: control_risk(some_rows([0]), [[np.nan, 1]], 0.1),
            "free of NaN",
        ),
        (
            lambda: control_risk(some_rows([0]), [[]], 0.1),
            "one entry per column",
        ),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()
