"""Steps that last as long as they do on a core that nobody else uses.

On a machine with other work a step takes as long as others let it, and no
figure of two processes means anything. A paced function was measured in
processor time, and from then on sleeps for that long in place of computing.
Everything else (journal, codec, wire) is real, and so are the arrays, which are
those of the steps that were measured.
"""

import itertools
import statistics
import time

import numpy as np

from _hierarchical import setting

_WARM_UP, _MEASURED = 1, 3


class Paced:
    """A function of a batch, paced.

    Args:
        function: What is paced; it is called with the arguments of `samples`.
        samples: Two lists of argument tuples, of small and of full batches,
            `_WARM_UP + _MEASURED` or more each.
        rows_of: Rows of a batch, of the same arguments.
    """

    def __init__(self, function, samples, rows_of=lambda x, *_: len(x)):
        points = []
        for arguments in samples:
            found = [_clocked(function, each) for each in arguments]
            seconds = [s for s, _ in found[_WARM_UP:]]
            points.append((rows_of(*arguments[0]), statistics.median(seconds)))
        (low, fast), (high, slow) = points
        self._rows_of = rows_of
        self._per_row = max(0.0, (slow - fast) / (high - low))
        self._fixed = slow - high * self._per_row
        self._results = itertools.cycle([r for _, r in found[_WARM_UP:]])

    def __call__(self, *arguments):
        start = time.monotonic()
        result = next(self._results)
        seconds = self._fixed + self._per_row * self._rows_of(*arguments)
        time.sleep(max(0.0, start + seconds - time.monotonic()))
        return result


def edge(baseline, segment):
    """Paces all steps of the edge's process."""
    batches = _images()
    segment.learn = Paced(segment.learn, _two_sizes(batches))
    two_sizes = _two_sizes((x,) for x, _ in batches)
    kept = [
        [
            (baseline.ahead(*one)[1], np.zeros_like(baseline.ahead(*one)[0]))
            for one in arguments
        ]
        for arguments in two_sizes
    ]
    baseline.back = Paced(baseline.back, kept, lambda _, g: len(g))
    baseline.ahead = Paced(baseline.ahead, two_sizes)


def cloud(baseline, segment):
    """Paces all steps of the cloud's process."""
    batches = _images()
    features = [(baseline.before.predict_on_batch(x), y) for x, y in batches]
    segment.learn = Paced(segment.learn, _two_sizes(features))
    baseline.split = Paced(baseline.split, _two_sizes(features))
    baseline.whole = Paced(baseline.whole, _two_sizes(batches))


def _images():
    """Batches to measure with."""
    count = _WARM_UP + _MEASURED
    x, y = setting.images(f"train[:{count * setting.BATCH}]")
    x = setting.normal(x)
    return [
        (part, labels)
        for part, labels in zip(
            np.split(x, count), np.split(y.astype("int32"), count), strict=True
        )
    ]


def _two_sizes(batches):
    """Arguments of small and of full batches."""
    full = [tuple(batch) for batch in batches]
    small = setting.BATCH // 4
    return [[tuple(a[:small] for a in batch) for batch in full], full]


def _clocked(function, arguments):
    start = time.process_time()
    result = function(*arguments)
    return time.process_time() - start, result
