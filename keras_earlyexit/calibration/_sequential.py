"""Tests that may be looked at after every sample: ranks, and bets on them.

Why ranks among everything seen before: the n-th sample's rank is uniform and
independent of all ranks before it as long as the samples are exchangeable,
however few samples the reference has. A test against a reference that is taken
for the truth would alarm sooner or later at its sampling error.
"""

import numpy as np

# Numbers that are compared one by one before they are sorted in.
_PENDING = 1024
_CHUNK = 256

# Samples whose bets are multiplied up at a time: within 0.1^200 and 1.9^200
# there is neither overflow nor underflow.
_STEP = 200


class SortedRanks:
    """Ranks of numbers among all numbers given before, ties broken at random.

    The i-th number has u_i = (#{j < i: s_j < s_i} + V (1 + #{j < i: s_j =
    s_i})) / i with V uniform on [0, 1]. For exchangeable numbers u_1, u_2, ...
    are independent and uniform. Keeps 8 bytes per number.

    Args:
        numbers: Float array (n,), what comes first.
    """

    def __init__(self, numbers):
        self._sorted = np.sort(numbers)
        self._pending = self._sorted[:0]

    def ranks(self, numbers, uniform):
        """The ranks of the next numbers.

        Args:
            numbers: Float array (m,), without NaN.
            uniform: Array (m,), the V above.

        Returns:
            Float array (m,) in [0, 1].
        """
        parts = [numbers[:0]]
        for start in range(0, len(numbers), _CHUNK):
            rows = slice(start, start + _CHUNK)
            parts.append(self._next(numbers[rows], uniform[rows]))
        return np.concatenate(parts)

    def _next(self, numbers, uniform):
        below = np.searchsorted(self._sorted, numbers, "left")
        ties = np.searchsorted(self._sorted, numbers, "right") - below
        pending = np.concatenate([self._pending, numbers])
        place = len(self._pending) + np.arange(len(numbers))[:, None]
        before = np.arange(len(pending)) < place
        column = numbers[:, None]
        below += ((pending < column) & before).sum(axis=1)
        ties += ((pending == column) & before).sum(axis=1)
        count = len(self._sorted) + place[:, 0] + 1
        self._pending = pending
        if len(pending) > _PENDING:
            # Sorting in takes time in proportion to everything kept.
            merged = np.concatenate([self._sorted, np.sort(pending)])
            self._sorted = np.sort(merged, kind="stable")
            self._pending = pending[:0]
        return (below + uniform * (ties + 1)) / count


class CountedRanks:
    """As `SortedRanks`, for small integers, of which only counts are kept.

    Args:
        counts: Integer array (K,), how often each of 0 ... K - 1 came first.
    """

    def __init__(self, counts):
        self._counts = np.array(counts, "int64")

    def ranks(self, numbers, uniform):
        """As in `SortedRanks`, for integers (m,) from 0 to K - 1."""
        came = numbers[:, None] == np.arange(len(self._counts))
        counts = self._counts + np.cumsum(came, axis=0)
        self._counts += came.sum(axis=0)
        below = np.cumsum(counts, axis=1) - counts
        rows = np.arange(len(numbers))
        # The sample's own 1 is in `counts` already.
        ties = counts[rows, numbers]
        return (below[rows, numbers] + uniform * ties) / counts.sum(axis=1)


class ChangeBets:
    """A martingale that grows if numbers stop being uniform at some moment.

    It starts at 1 and is a mixture over when and how uniformity ends:

        M_n = a_n + sum_t w_t mean_s prod_{t < i <= n} f_s(u_i)

    with densities f_s(u) = 1 + e_s L_s(u), L the Legendre polynomials of
    degree 1 (numbers have become larger or smaller) and 2 (more or less
    extreme). Half of the weight is on t = 0; the rest falls off as
    w_t ~ t^-1.25, so that a change after t samples is found little later than
    one at the start; a_n is the weight of the moments to come. A number that
    is NaN is passed over: its densities are 1.
    """

    # 2.5 bets on where numbers lie for each on how they spread: drift mostly
    # moves scores one way. |e| < 1 keeps every density above 0.
    _SIZES = np.array([0.9, -0.9, 0.3, -0.3, 0.8, -0.8])
    _DEGREE_2 = np.array([False, False, False, False, True, True])
    _FIRST = 0.5
    _SCALE, _POWER = 100.0, 0.25

    def __init__(self):
        self._n = 0
        self._log_scale = 0.0
        self._idle = 1.0 - self._FIRST
        self._capital = np.full(len(self._SIZES), self._FIRST)
        self._capital /= len(self._SIZES)

    def bet(self, numbers):
        """log M after each of the next numbers.

        Args:
            numbers: Float array (m,) in [0, 1], or NaN.

        Returns:
            Float array (m,).
        """
        parts = [numbers[:0]]
        for start in range(0, len(numbers), _STEP):
            parts.append(self._next(numbers[start : start + _STEP]))
        return np.concatenate(parts)

    def _next(self, numbers):
        u = np.where(np.isnan(numbers), 0.5, numbers)[:, None]
        curves = np.where(self._DEGREE_2, 1 - 6 * u * (1 - u), 2 * u - 1)
        factors = 1 + self._SIZES * curves
        factors[np.isnan(numbers)] = 1.0
        grown = np.cumprod(factors, axis=0)
        # What is idle during the number before these, and during each.
        moments = np.arange(self._n - 1, self._n + len(numbers)).clip(0)
        idle = (1 + moments / self._SCALE) ** -self._POWER
        idle *= self._idle / idle[0]
        started = (idle[:-1] - idle[1:])[:, None] / grown.shape[1]
        # Bets that start at a number have missed the factors before it.
        missed = np.concatenate([np.ones((1, grown.shape[1])), grown[:-1]])
        started = np.cumsum(started / missed, axis=0)
        capital = grown * (self._capital + started)
        total = capital.sum(axis=1) + idle[1:]
        found = np.log(total) + self._log_scale
        self._n += len(numbers)
        self._idle = idle[-1] / total[-1]
        self._capital = capital[-1] / total[-1]
        self._log_scale = found[-1]
        return found
