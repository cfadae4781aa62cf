"""Which samples of a batch go up to be learned from there."""

import contextlib
import math
from typing import NamedTuple

import numpy as np

NON_EXITED, ALL = "non_exited", "all"
#: Share of those that leave at the edge that goes up all the same.
FLOOR = 0.25
#: How much likelier than the mean the least certain of these is drawn, and how
#: much less likely the most certain one. Most of the gradient is in the former.
TILT = 0.6
_SELECT = 2


class Chosen(NamedTuple):
    """Who goes up.

    Args:
        rows: Indices in ascending order, at least one.
        weight: Array (rows,) of sample weights, or `None` for equal ones.
    """

    rows: np.ndarray
    weight: np.ndarray | None


class Forwarding:
    """Decides who is forwarded; the same each time it is asked.

    Args:
        forward: `"all"`; a share in (0, 1], drawn at random, also as text; or
            `"non_exited"`: those who do not leave at the edge, everybody in
            the first pass, and a quarter of those who leave, drawn at random,
            the likelier the lower their exit score. Each of these counts for
            those who are left out, so that the loss of the later segment is
            in expectation that of whole batches: it neither starves nor takes
            hard samples for all there are.
        seed: Integer that draws follow from.

    Raises:
        ValueError: If `forward` is none of these.
    """

    def __init__(self, forward=NON_EXITED, seed=0):
        with contextlib.suppress(TypeError, ValueError):
            if isinstance(forward, str):
                forward = float(forward)
        is_share = isinstance(forward, (int, float)) and 0 < forward <= 1
        if isinstance(forward, bool) or not (
            is_share or forward in (ALL, NON_EXITED)
        ):
            raise ValueError(
                f"Expected forward={ALL!r}, {NON_EXITED!r} or a share above 0 "
                f"and at most 1. Received: {forward!r} (of type "
                f"{type(forward).__name__}). Choose one of them."
            )
        self._forward, self._seed = forward, seed

    def choose(self, segment, outputs, weight, number, sequence):
        """The samples of a batch that go up.

        Args:
            segment: The `SegmentModel`, for who leaves.
            outputs: What it gave for the batch, a dict of arrays.
            weight: Sample weights, an array (batch,), or `None`.
            number: The pass over the data.
            sequence: The number of the batch.

        Returns:
            A `Chosen`.
        """
        count = len(outputs["feature"])
        if self._forward == ALL or (
            self._forward == NON_EXITED and number == 0
        ):
            return Chosen(np.arange(count), weight)
        rng = np.random.default_rng((self._seed, number, _SELECT, sequence))
        if self._forward != NON_EXITED:
            drawn = rng.permutation(count)[: math.ceil(self._forward * count)]
            return _chosen(np.sort(drawn), weight)
        scores = segment.scores(outputs)
        leaves = segment.leaving(outputs, scores)
        last = scores[segment.exit_names[-1]]
        leavers = np.flatnonzero(leaves)
        leavers = leavers[np.argsort(last[leavers], kind="stable")]
        drawn, chance = _drawn(leavers, rng)
        rows = np.sort(np.concatenate([np.flatnonzero(~leaves), drawn]))
        if len(rows) == count:
            return _chosen(rows, weight)
        counts_for = np.ones(count, "float32")
        counts_for[drawn] = 1 / chance
        # Their mean is about one: steps are as long as those of whole batches.
        counts_for *= len(rows) / count
        if weight is not None:
            counts_for *= weight
        return _chosen(rows, counts_for)


def _drawn(leavers, rng):
    """A quarter of the leavers, at regular steps from a random start.

    Args:
        leavers: Rows in ascending order of their scores.
        rng: A `numpy.random.Generator`.

    Returns:
        What is drawn, and how likely each of it was to be.
    """
    count = math.ceil(FLOOR * len(leavers))
    chance = np.linspace(1 + TILT, 1 - TILT, len(leavers))
    chance *= count / max(chance.sum(), 1)
    # Each of them has a stretch as long as it is likely.
    ends = np.cumsum(chance)[:-1]
    found = np.searchsorted(ends, rng.random() + np.arange(count), "right")
    return leavers[found], chance[found]


def _chosen(rows, weight):
    return Chosen(rows, None if weight is None else weight[rows])
