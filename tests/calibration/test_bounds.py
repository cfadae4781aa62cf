"""Bounds and p-values: golden values, limits, other implementations."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from keras_earlyexit.calibration import (
    bounds,
    hoeffding_bentkus_p_value,
    hoeffding_bentkus_upper_bound,
    wsr_upper_bound,
)

DATA = pathlib.Path(__file__).parent.parent / "data"
GOLDEN = json.loads((DATA / "risk_control.json").read_text())


def golden_losses(case):
    losses = np.full(case["n"], case["fill"])
    if case["one_every"]:
        losses[:: case["one_every"]] = 1.0
    losses[case["minus_one_at"]] = -1.0
    return losses


def log_wealth(losses, delta, bound, risk):
    """ln K_i(risk) for i = 1..n: the formulas, sample by sample."""
    n = len(losses)
    bets, total, squares, variance = [], 0.0, 0.0, 0.25
    for i, loss in enumerate(losses, start=1):
        bet = np.sqrt(2 * np.log(1 / delta) / (n * variance))
        bets.append(min(1 / bound, bet))
        total += loss
        squares += (loss - (0.5 + total) / (i + 1)) ** 2
        variance = (0.25 + squares) / (i + 1)
    return np.cumsum(np.log1p(-np.array(bets) * (losses - risk)))


def wsr_reference(losses, delta, bound):
    """A plain bisection."""
    low, high = 0.0, bound
    for _ in range(40):
        middle = (low + high) / 2
        if log_wealth(losses, delta, bound, middle).max() > -np.log(delta):
            high = middle
        else:
            low = middle
    return high


def early_exit_losses(n, num_thresholds, seed=0, kind="zero_one"):
    generator = np.random.default_rng(seed)
    thresholds = np.linspace(0.0, 1.0, num_thresholds)
    score, luck = generator.random((2, n, 1))
    leaves = score > thresholds
    if kind == "zero_one":
        return (leaves & (luck < 0.4 * (1 - score))).astype("float64")
    return leaves * (2 * luck**3 - 0.2)


@pytest.mark.parametrize("case", GOLDEN["wsr_upper_bound"]["cases"])
def test_wsr_golden(case):
    bound = wsr_upper_bound(golden_losses(case), case["delta"], case["bound"])
    assert isinstance(bound, float)
    assert bound == pytest.approx(case["expected"], abs=2e-6)


@pytest.mark.parametrize("case", GOLDEN["hoeffding_bentkus_p_value"]["cases"])
def test_p_value_golden(case):
    arguments = case["risk"], case["n"], case["epsilon"]
    general = hoeffding_bentkus_p_value(*arguments)
    binary = hoeffding_bentkus_p_value(*arguments, binary=True)
    assert isinstance(general, float) and isinstance(binary, float)
    assert general == pytest.approx(case["general"], rel=1e-5)
    assert binary == pytest.approx(case["binary"], rel=1e-5)


@pytest.mark.parametrize("bound", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("n", [1, 2, 7, 60])
def test_wsr_equals_the_formulas(n, bound):
    generator = np.random.default_rng(n)
    columns = [
        generator.uniform(-bound, bound, n),
        bound * generator.random(n) ** 3,
        bound * generator.integers(-1, 2, n),
        bound * np.sort(generator.integers(0, 2, n))[::-1],
        np.full(n, bound),
        np.full(n, 0.01 * bound),
    ]
    losses = np.stack(columns, axis=1)
    for delta in (0.001, 0.1, 0.9):
        expected = [wsr_reference(c, delta, bound) for c in columns]
        actual = wsr_upper_bound(losses, delta, bound)
        np.testing.assert_allclose(actual, expected, atol=2e-8 * bound)


def test_wsr_equals_the_formulas_on_steep_wealth():
    # Losses at `bound` with a bet of 1 / bound: the log wealth starts at
    # minus infinity, and a Newton step from there is as short as at a root.
    generator = np.random.default_rng(0)
    for _ in range(60):
        n, bound = generator.integers(5, 60), 10 ** generator.uniform(1, 2.5)
        delta = 10 ** generator.uniform(-5, -2)
        wins = generator.random((n, 4)) < generator.random(4)
        losses = bound * np.where(wins, 1.0, -1.0)
        actual = wsr_upper_bound(losses, delta, bound)
        expected = [wsr_reference(c, delta, bound) for c in losses.T]
        np.testing.assert_allclose(actual, expected, atol=2e-8 * bound)


def test_wsr_columns_equal_single_vectors():
    losses = early_exit_losses(5000, 40, kind="real")
    together = wsr_upper_bound(losses, 0.1, 2.0)
    alone = [wsr_upper_bound(column, 0.1, 2.0) for column in losses.T]
    assert together.shape == (40,)
    np.testing.assert_allclose(together, alone, atol=4e-8)


@pytest.mark.parametrize("dtype", ["bool", "int8", "float32", "float64"])
def test_wsr_takes_any_real_dtype(dtype):
    losses = early_exit_losses(200, 5)
    np.testing.assert_array_equal(
        wsr_upper_bound(losses.astype(dtype), 0.1), wsr_upper_bound(losses, 0.1)
    )


def test_wsr_limits():
    assert wsr_upper_bound(np.full(50, -1.0), 0.1) == pytest.approx(1e-10)
    assert wsr_upper_bound(np.ones(50), 0.1) == 1.0
    assert wsr_upper_bound([0.0], 0.1) == 1.0
    assert wsr_upper_bound(np.full(400, 2.0), 0.1, 2.0) == 2.0
    assert 1.0 < wsr_upper_bound(np.full(400, 1.5), 0.1, 2.0) < 2.0


def test_wsr_smaller_delta_is_a_larger_bound():
    losses = early_exit_losses(300, 20)
    values = [wsr_upper_bound(losses, d) for d in (0.5, 0.1, 0.01, 1e-6)]
    assert np.all(np.diff(values, axis=0) >= -1e-9)
    assert np.all(values[1] >= losses.mean(axis=0))


def test_wsr_one_pass_decision_equals_the_bound():
    for kind, bound in (("zero_one", 1.0), ("real", 2.0)):
        losses = early_exit_losses(400, 101, kind=kind)
        values = wsr_upper_bound(losses, 0.1, bound)
        for epsilon in (0.001, 0.02, 0.1, 0.3):
            below = bounds.wsr_bound_below(losses, epsilon, 0.1, bound)
            np.testing.assert_array_equal(below, values < epsilon)


def test_p_value_counts_without_rounding_errors():
    # 0.07 * 100 is 7.000000000000001, 0.29 * 100 is 28.999999999999996.
    for count in range(101):
        tail = stats.binom.cdf(count, 100, 0.2)
        binary = hoeffding_bentkus_p_value(count / 100, 100, 0.2, binary=True)
        assert binary == pytest.approx(tail, rel=1e-9)
        general = hoeffding_bentkus_p_value(count / 100, 100, 0.2)
        assert general <= min(1.0, np.e * tail * (1 + 1e-9))


def test_p_value_rounds_a_broken_count_up():
    for count in range(50):
        more = hoeffding_bentkus_p_value((count + 1e-6) / 100, 100, 0.2, True)
        expected = stats.binom.cdf(count + 1, 100, 0.2)
        assert more == pytest.approx(expected, rel=1e-9)


def test_p_value_shapes_and_limits():
    risks = np.linspace(0, 1, 21)
    values = hoeffding_bentkus_p_value(risks, 40, 0.1)
    assert values.shape == (21,)
    assert np.all(np.diff(values) >= 0)
    assert values[0] == pytest.approx(0.9**40)
    assert values[-1] == 1.0
    assert hoeffding_bentkus_p_value(risks[:, None], [10, 20], 0.1).shape == (
        21,
        2,
    )


@pytest.mark.parametrize("binary", [False, True])
def test_hoeffding_bentkus_upper_bound_inverts_the_p_value(binary):
    for n in (1, 20, 500):
        risks = np.arange(n) / n
        for delta in (0.01, 0.1, 0.9):
            upper = hoeffding_bentkus_upper_bound(risks, n, delta, binary)
            for risk, value in zip(risks[::7], upper[::7], strict=True):
                p_value = hoeffding_bentkus_p_value(risk, n, value, binary)
                assert p_value == pytest.approx(delta, rel=1e-6)
    assert hoeffding_bentkus_upper_bound(1.0, 10, 0.1, binary) == 1.0


def test_binary_upper_bound_is_clopper_pearson():
    upper = hoeffding_bentkus_upper_bound(0.05, 100, 0.1, binary=True)
    assert upper == pytest.approx(stats.beta.ppf(0.9, 6, 95), abs=1e-9)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: wsr_upper_bound([], 0.1), "non-empty"),
        (lambda: wsr_upper_bound(np.zeros((2, 2, 2)), 0.1), "shape"),
        (lambda: wsr_upper_bound([0.0, np.nan], 0.1), "NaN"),
        (lambda: wsr_upper_bound([0.0, 1.1], 0.1), "Received values"),
        (lambda: wsr_upper_bound([0.0, -1.1], 0.1), "2 for Brier"),
        (lambda: wsr_upper_bound([0.0], 0.0), "`delta`.*0.1"),
        (lambda: wsr_upper_bound([0.0], 1), r"Received delta=1 \(int\)"),
        (lambda: wsr_upper_bound([0.0], "0.1"), r"\(str\)"),
        (lambda: wsr_upper_bound([0.0], 0.1, 0.0), "`bound`"),
        (lambda: wsr_upper_bound([0.0], 0.1, np.inf), "finite"),
        (lambda: hoeffding_bentkus_p_value(1.1, 10, 0.1), "`risk`"),
        (lambda: hoeffding_bentkus_p_value(np.nan, 10, 0.1), "`risk`"),
        (lambda: hoeffding_bentkus_p_value(0.1, 0, 0.1), "`n`"),
        (lambda: hoeffding_bentkus_p_value(0.1, 2.5, 0.1), "`n`"),
        (lambda: hoeffding_bentkus_p_value(0.1, 10, 1.0), "`epsilon`"),
        (lambda: hoeffding_bentkus_upper_bound(0.1, 10, 2.0), "`delta`"),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bad_types():
    with pytest.raises(TypeError, match="real numbers"):
        wsr_upper_bound(["a"], 0.1)
    with pytest.raises(TypeError, match="real numbers"):
        hoeffding_bentkus_p_value(1j, 10, 0.1)


def test_importing_loads_no_scipy():
    code = (
        "import sys, keras_earlyexit.calibration as c; c.wsr_upper_bound; "
        "c.control_risk; c.fit_temperature; c.conformal_quantile; "
        "sys.exit(any(m in sys.modules for m in ('scipy', 'keras')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_p_values_agree_with_mapie():
    methods = pytest.importorskip("mapie.risk_control.methods")
    # Counts that survive the division, which MAPIE does not round.
    counts = [k for k in range(200) if 200 * (k / 200) == k]
    risks = np.array(counts) / 200
    for binary in (False, True):
        theirs = methods.compute_hoeffding_bentkus_p_value(
            risks, 200, [0.05, 0.2], binary
        )
        for column, epsilon in enumerate((0.05, 0.2)):
            ours = hoeffding_bentkus_p_value(risks, 200, epsilon, binary)
            np.testing.assert_allclose(ours, theirs[:, column], rtol=1e-9)


@pytest.mark.parametrize("kind", ["zero_one", "real"])
def test_wsr_agrees_with_mapie_where_both_compute_the_same(kind):
    # MAPIE adds the peaks of the two halves of the samples, each half
    # starting from nothing. That is the peak of the whole only where the
    # first half peaks at its end and the whole in the second half.
    methods = pytest.importorskip("mapie.risk_control.methods")
    losses = np.random.default_rng(0).random((60, 301))
    levels = np.linspace(0.02, 0.5, 301)
    losses = losses < levels if kind == "zero_one" else losses ** (1 / levels)
    losses = losses.astype("float64")
    grid = np.linspace(0, 1, 301)
    theirs = methods.get_r_hat_plus(losses, grid, "rcps", "wsr", 0.1, 0.25)[1]
    above = np.searchsorted(grid, wsr_upper_bound(losses, 0.1))
    num_compared = 0
    for column, place, their_bound in zip(losses.T, above, theirs, strict=True):
        wealth = log_wealth(column, 0.1, 1.0, grid[place - 1])
        if wealth[:30].argmax() == 29 and wealth.argmax() >= 30:
            assert their_bound == pytest.approx(grid[place])
            num_compared += 1
    assert num_compared >= 25
