"""How often, and how soon, a failed call is made again.

Retries help when little is wrong and do harm when much is. So a link has a
budget: failures empty it, successes fill it slowly, and below half of it
nothing is tried twice (gRPC's proposal A6). Waits have full jitter, or edges
that failed together would come back together.
"""

import random
import threading


class RetryBudget:
    """Tokens that decide whether a failed call may be made again.

    Args:
        max_tokens: Failures in a row until the budget is empty.
        token_ratio: What a success gives back.

    Example:

    >>> budget = RetryBudget(max_tokens=4)
    >>> budget.failed(), budget.failed(), budget.failed()
    (True, False, False)
    """

    def __init__(self, max_tokens=10, token_ratio=0.1):
        self._max_tokens = float(max_tokens)
        self._token_ratio = token_ratio
        self._tokens = self._max_tokens
        self._lock = threading.Lock()

    def failed(self):
        """Notes a failure; returns whether the call may be made again."""
        with self._lock:
            self._tokens = max(0.0, self._tokens - 1)
            return self._tokens > self._max_tokens / 2

    def succeeded(self):
        """Notes a call that was answered."""
        with self._lock:
            self._tokens = min(
                self._max_tokens, self._tokens + self._token_ratio
            )


class Backoff:
    """Waits between attempts: random, up to a bound that doubles.

    Args:
        initial_s: Bound of the first wait, in seconds.
        max_s: Largest bound, in seconds.
        rng: Called without arguments for a number from 0 to 1.
    """

    def __init__(self, initial_s=0.05, max_s=1.0, rng=random.random):
        self._initial_s = initial_s
        self._max_s = max_s
        self._rng = rng

    def wait_s(self, attempt):
        """Seconds to wait after an attempt that failed, 1 for the first."""
        # The exponent is bounded: an outage may have thousands of attempts.
        bound = self._initial_s * 2 ** min(attempt - 1, 30)
        return self._rng() * min(bound, self._max_s)
