"""Upper confidence bounds and p-values for the mean of bounded losses.

Why no grid: a grid of candidate risks costs memory for every candidate and
returns a grid value. The wealth of the betting bound grows with the risk that
is bet against, so each bound here is the root of an increasing function, found
by Newton steps that are kept inside a bracket. Whether a bound lies below one
given risk takes a single pass and no root at all (`wsr_bound_below`).
"""

import numpy as np

from keras_earlyexit.calibration import _checks

_DELTA_ADVICE = "It is the chance of a wrong bound, for example 0.1."
_BOUND_ADVICE = "It is the largest loss: 1 for zero-one, 2 for Brier."
# The smallest upper bound that is ever returned.
_FLOOR = 1e-10
# Entries of `losses` that are worked on at a time: they fit the cache.
_BLOCK = 65536


def wsr_upper_bound(losses, delta, bound=1.0):
    """Upper bound on a mean loss by betting (Waudby-Smith and Ramdas).

    With B = `bound` and samples i = 1..n in the order given:

        mu_i = (1/2 + sum_{j<=i} l_j) / (i + 1)
        s2_i = (1/4 + sum_{j<=i} (l_j - mu_j)^2) / (i + 1),  s2_0 = 1/4
        nu_i = min(1/B, sqrt(2 ln(1/delta) / (n s2_{i-1})))
        K_i(r) = prod_{j<=i} (1 - nu_j (l_j - r))

    The bound is the smallest r with max_i K_i(r) > 1 / delta, at most B (and
    at least 1e-10: a mean that is surely negative is not followed below 0).
    The true mean lies above it with probability at most `delta`.

    The order of the samples matters and must not depend on their values:
    sorted losses break the guarantee.

    Args:
        losses: array (n,), or (n, L) for one bound per column; independent
            and identically distributed rows, entries in [-bound, bound].
        delta: the chance of a bound that is too low, in (0, 1).
        bound: B, the largest absolute loss.

    Returns:
        The bound in units of the loss: a float for shape (n,), a float64
        array (L,) for shape (n, L).

    Raises:
        ValueError: if `losses` is empty, holds NaN or leaves
            [-bound, bound], or if `delta` or `bound` is out of range.
        TypeError: if `losses` does not hold real numbers.

    Example:

    >>> import numpy as np
    >>> losses = np.zeros(100)
    >>> losses[::10] = 1
    >>> round(wsr_upper_bound(losses, delta=0.1), 4)
    0.1862

    Reference: Waudby-Smith and Ramdas, "Estimating means of bounded random
    variables by betting", 2024 (arXiv 2010.09686); as used in "Fast yet
    Safe", 2024 (arXiv 2405.20915), Algorithm 2.
    """
    delta = _checks.fraction("delta", delta, _DELTA_ADVICE)
    bound = _checks.positive("bound", bound, _BOUND_ADVICE)
    losses = _checks.bounded_losses(losses, bound, (1, 2))
    columns = losses.reshape(len(losses), -1)
    result = np.concatenate(
        [
            _smallest_rejected_risk(*block, delta, bound)
            for block in _bets(columns, delta, bound)
        ]
    )
    return result if losses.ndim == 2 else float(result[0])


def wsr_bound_below(losses, epsilon, delta, bound):
    """Whether `wsr_upper_bound(losses, delta, bound) < epsilon`, per column.

    The wealth grows with r, so the smallest r that it rejects lies below
    `epsilon` exactly if it rejects `epsilon` itself: one pass, no search.
    """
    rejected = [
        _log_wealth_peak(offset, bet, epsilon)[0] > -np.log(delta)
        for offset, bet in _bets(losses, delta, bound)
    ]
    return np.concatenate(rejected) | (epsilon > bound)


def hoeffding_bentkus_p_value(risk, n, epsilon, binary=False):
    """P-value of the hypothesis that a mean loss exceeds `epsilon`.

    For n losses in [0, 1] with mean `risk`,

        p = min(exp(-n h(min(risk, epsilon), epsilon)),
                e P(Binomial(n, epsilon) <= ceil(n risk)))

    with h(a, b) = a ln(a/b) + (1 - a) ln((1 - a) / (1 - b)). For losses that
    are all 0 or 1, `binary=True` gives the exact tail
    P(Binomial(n, epsilon) <= n risk), which is smaller.

    `n risk` is a count that has been through a division: it is rounded to an
    integer that is within 1e-9 before the ceiling is taken.

    Args:
        risk: mean loss in [0, 1]; a float or an array of any shape.
        n: how many losses the mean is over; an integer or an array.
        epsilon: the risk to be tested against, in (0, 1).
        binary: whether every loss is 0 or 1.

    Returns:
        The p-value in [0, 1]: a float, or an array if `risk` or `n` is one.

    Raises:
        ValueError: if `risk` leaves [0, 1], `n` is no positive integer, or
            `epsilon` leaves (0, 1).
        TypeError: if `risk` or `n` does not hold real numbers.

    Example:

    >>> round(hoeffding_bentkus_p_value(0.05, 100, 0.1), 5)
    0.15651
    >>> round(hoeffding_bentkus_p_value(0.05, 100, 0.1, binary=True), 5)
    0.05758

    Reference: Bates et al., "Distribution-free, risk-controlling prediction
    sets", 2021 (arXiv 2101.02703); Angelopoulos et al., "Learn then test",
    2021 (arXiv 2110.01052).
    """
    epsilon = _checks.fraction(
        "epsilon", epsilon, "It is the risk that is allowed, for example 0.02."
    )
    risk, n = _check_mean(risk, n)
    p_value = _p_value(risk, n, epsilon, binary)
    return p_value if p_value.ndim else float(p_value)


def hoeffding_bentkus_upper_bound(risk, n, delta, binary=False):
    """Upper bound on a mean loss by inverting the Hoeffding-Bentkus p-value.

    The largest a with `hoeffding_bentkus_p_value(risk, n, a) >= delta`, by
    bisection to 1e-12: the p-value falls as a grows. The true mean lies above
    the bound with probability at most `delta`. With `binary=True` it is the
    one-sided Clopper-Pearson bound.

    Args:
        risk: mean of n losses in [0, 1]; a float or an array of any shape.
        n: how many losses the mean is over; an integer or an array.
        delta: the chance of a bound that is too low, in (0, 1).
        binary: whether every loss is 0 or 1.

    Returns:
        The bound in [0, 1]: a float, or an array if `risk` or `n` is one.

    Raises:
        ValueError: if `risk` leaves [0, 1], `n` is no positive integer, or
            `delta` leaves (0, 1).
        TypeError: if `risk` or `n` does not hold real numbers.

    Example:

    >>> round(hoeffding_bentkus_upper_bound(0.05, 100, delta=0.1), 4)
    0.107

    Reference: Bates et al., "Distribution-free, risk-controlling prediction
    sets", 2021 (arXiv 2101.02703), section 3.1.
    """
    delta = _checks.fraction("delta", delta, _DELTA_ADVICE)
    risk, n = _check_mean(risk, n)
    low = np.zeros(np.broadcast_shapes(risk.shape, n.shape))
    high = np.ones_like(low)
    for _ in range(40):
        middle = (low + high) / 2
        kept = _p_value(risk, n, middle, binary) >= delta
        low = np.where(kept, middle, low)
        high = np.where(kept, high, middle)
    # A bound from above: the end of the bracket that is known to be rejected.
    return high if high.ndim else float(high)


def _bets(losses, delta, bound):
    """Yields, block of columns by block, (1 - nu l, nu), both (columns, n)."""
    n, num_columns = losses.shape
    step = max(1, _BLOCK // n)
    counts = np.arange(2.0, n + 2)
    for start in range(0, num_columns, step):
        # Samples along the contiguous axis: every sum runs over memory in
        # order, and a block stays in the cache.
        block = losses[:, start : start + step].T
        block = np.clip(block.astype("float64", order="C"), -bound, bound)
        mean = np.cumsum(block, axis=1)
        mean += 0.5
        mean /= counts
        mean -= block
        mean *= mean
        variance = np.cumsum(mean, axis=1, out=mean)
        variance += 0.25
        variance /= counts
        bet = np.empty_like(variance)
        bet[:, 0] = 0.25
        bet[:, 1:] = variance[:, :-1]
        np.divide(-2 * np.log(delta) / n, bet, out=bet)
        np.sqrt(bet, out=bet)
        np.minimum(bet, 1 / bound, out=bet)
        block *= bet
        np.subtract(1, block, out=block)
        # Rounding may leave -1e-16 where the loss equals `bound`.
        np.maximum(block, 0, out=block)
        yield block, bet


def _log_wealth_peak(offset, bet, risk):
    """Largest ln K_i(risk) of each row, its index i, and the factors of K."""
    factors = bet * risk
    factors += offset
    wealth = np.log(factors)
    np.cumsum(wealth, axis=1, out=wealth)
    peak = wealth.argmax(axis=1)
    return np.take_along_axis(wealth, peak[:, None], 1)[:, 0], peak, factors


def _smallest_rejected_risk(offset, bet, delta, bound):
    """The root r of max_i ln K_i(r) = ln(1/delta) in [_FLOOR, bound]."""
    num_rows, n = bet.shape
    goal = -np.log(delta)
    positions = np.arange(n)
    # Where ln(1 + x) ~ x - x^2/2 would put the root.
    losses = (1 - offset) / bet
    guess = losses.mean(axis=1) + np.sqrt(2 * goal / n) * losses.std(axis=1)
    risk = np.clip(guess + goal / n, _FLOOR, bound)
    # The largest risk known not to be rejected, the smallest known to be.
    low, high = np.full(num_rows, -np.inf), np.full(num_rows, np.inf)
    tolerance = 1e-8 * bound
    active = np.arange(num_rows)
    for iteration in range(100):
        now = risk[active]
        wealth, peak, factors = _log_wealth_peak(
            offset[active], bet[active], now[:, None]
        )
        rejected = wealth > goal
        high[active] = np.where(rejected, now, high[active])
        low[active] = np.where(rejected, low[active], now)
        np.divide(bet[active], factors, out=factors)
        factors *= positions <= peak[:, None]
        newton = now - (wealth - goal) / factors.sum(axis=1)
        newton = np.clip(newton, _FLOOR, bound)
        # ln K_i is concave. A short step down is therefore a close one, but a
        # short step up may start where the slope is steep, far from the root:
        # aim a little beyond and come down from there.
        aim = np.where(rejected, newton, newton + tolerance / 2)
        lower = np.maximum(low[active], _FLOOR)
        upper = np.minimum(high[active], bound)
        # The largest of concave functions need not be concave: outside the
        # bracket, or if it takes long, halve the bracket.
        halve = (aim <= low[active]) | (aim >= high[active]) | (iteration > 20)
        aim = np.where(halve, (lower + upper) / 2, np.minimum(aim, bound))
        done = rejected & (now - newton <= tolerance)
        risk[active] = np.where(done, newton, aim)
        active = active[~done & (upper - lower > tolerance)]
        if not len(active):
            break
    return risk


def _check_mean(risk, n):
    risk, n = _checks.numeric("risk", risk), _checks.numeric("n", n)
    if not (risk.size and np.all((risk >= 0) & (risk <= 1))):
        raise ValueError(
            "`risk` must be a mean of losses in [0, 1]. Received "
            f"risk={_checks.describe(risk)}. Clip the losses at 0 and divide "
            "them by their bound."
        )
    if not (n.size and np.all((n >= 1) & (n == np.floor(n)))):
        raise ValueError(
            "`n` must be the number of samples, an integer of at least 1. "
            f"Received n={_checks.describe(n)}. Pass len(losses)."
        )
    return risk.astype("float64"), n.astype("float64")


def _p_value(risk, n, epsilon, binary):
    from scipy import special

    count = n * risk
    nearest = np.round(count)
    count = np.where(np.abs(count - nearest) <= 1e-9, nearest, np.ceil(count))
    # P(Binomial(n, epsilon) <= count), without loading scipy.stats.
    tail = np.where(
        count >= n,
        1.0,
        special.betainc(np.maximum(n - count, 0.5), count + 1, 1 - epsilon),
    )
    if binary:
        return tail
    shifted = np.minimum(risk, epsilon)
    # rel_entr(0, b) is 0, so that a risk of 0 gives (1 - epsilon)^n.
    divergence = special.rel_entr(shifted, epsilon)
    divergence = divergence + special.rel_entr(1 - shifted, 1 - epsilon)
    return np.minimum(np.exp(-n * divergence), np.e * tail)
