"""Steps that last as long as they do on a core that nobody else uses.

On a machine with other work a step takes as long as others let it, and no
figure of two processes means anything. A paced function was measured in
processor time, and from then on sleeps for that long in place of computing.
Everything else (journal, codec, wire) is real, and so are the arrays, which are
those of the steps that were measured.

The device's profile, of which the plan is made, is measured in turn with it,
round after round: the processor time of one and the same step drifts by a
third within a minute on a machine that is shared, so that a profile of another
minute is a profile of another device.
"""

import itertools
import statistics
import time

import numpy as np

from _hierarchical import setting
from keras_earlyexit.profiling import measuring

_WARM_UP, ROUNDS = 1, 10
SIZES = setting.BATCH // 2, setting.BATCH


class Paced:
    """A function of a batch, paced.

    Args:
        function: What is paced.
        arguments: A function of images and labels that makes what it takes,
            which is not measured.
        rows_of: Rows of a batch, of the arguments.
        kept: What is to be returned later, of a result.
    """

    def __init__(
        self,
        function,
        arguments,
        rows_of=lambda x, *_: len(x),
        kept=lambda result: result,
    ):
        self._function, self._arguments = function, arguments
        self._rows_of, self._kept = rows_of, kept
        self._seconds = {rows: [] for rows in SIZES}
        self._results = []

    def measure(self, x, y):
        """Runs it once, with as many rows as one of `SIZES`."""
        arguments = self._arguments(x, y)
        start = time.process_time()
        result = self._function(*arguments)
        self._seconds[len(x)].append(time.process_time() - start)
        if len(x) == SIZES[-1]:
            self._results.append(self._kept(result))

    def settle(self):
        """From now on it sleeps."""
        low, high = SIZES
        fast, slow = (
            statistics.median(self._seconds[rows][_WARM_UP:]) for rows in SIZES
        )
        self._per_row = max(0.0, (slow - fast) / (high - low))
        self._fixed = slow - high * self._per_row
        self._results = itertools.cycle(self._results[_WARM_UP:])

    def __call__(self, *arguments):
        start = time.monotonic()
        result = next(self._results)
        seconds = self._fixed + self._per_row * self._rows_of(*arguments)
        time.sleep(max(0.0, start + seconds - time.monotonic()))
        return result


def edge(model, baseline, segment):
    """Paces all steps of the edge's process; its `DeviceProfile`."""
    ahead = baseline.ahead

    def with_gradient(x, y):
        feature, kept = ahead(x)
        return kept, np.zeros_like(feature)

    segment.learn = Paced(segment.learn, lambda x, y: (x, y))
    # A tape holds all activations, and `back` does not need them any more.
    baseline.ahead = Paced(
        ahead, lambda x, y: (x,), kept=lambda result: (result[0], None)
    )
    baseline.back = Paced(baseline.back, with_gradient, lambda _, g: len(g))
    return _measured(model, segment.learn, baseline.ahead, baseline.back)


def cloud(model, baseline, segment):
    """Paces all steps of the cloud's process; its `DeviceProfile`."""

    def feature(x, y):
        return baseline.before.predict_on_batch(x), y

    segment.learn = Paced(segment.learn, feature)
    baseline.split = Paced(baseline.split, feature)
    baseline.whole = Paced(baseline.whole, lambda x, y: (x, y))
    return _measured(model, segment.learn, baseline.split, baseline.whole)


def _measured(model, *paced):
    """Measures and settles; the profile that was measured meanwhile."""
    count = _WARM_UP + ROUNDS
    x, y = setting.images(f"train[:{count * setting.BATCH}]")
    x, y = setting.normal(x), y.astype("int32")

    def measure(index, rows):
        start = index * setting.BATCH
        for function in paced:
            function.measure(*(a[start : start + rows] for a in (x, y)))

    done = dict.fromkeys(SIZES, _WARM_UP)
    for rows in SIZES:
        for index in range(_WARM_UP):
            measure(index, rows)
    rounds = measuring.in_turn(
        model,
        SIZES,
        repeats=ROUNDS,
        x=x[: setting.BATCH],
        training="adam",
        clock=time.process_time,
    )
    while True:
        try:
            rows = next(rounds)
        except StopIteration as end:
            found = end.value
            break
        measure(done[rows], rows)
        done[rows] += 1
    for function in paced:
        function.settle()
    return found
