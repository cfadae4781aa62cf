"""Puts the answers of both sides into the order of the inputs."""

import dataclasses

import numpy as np

from edge_worker.results import (
    ANSWERED_BY,
    CLOUD,
    DEGRADED,
    SplitResult,
)
from protos.calling.answers import SECONDS

_NAMES = np.array(ANSWERED_BY, "<U8")
_CLOUD, _DEGRADED = map(ANSWERED_BY.index, (CLOUD, DEGRADED))


class Merging:
    """What is known of the samples of one call, batch by batch.

    Args:
        relative_costs: Cost of each exit over the plain model's.
    """

    def __init__(self, relative_costs):
        self._costs = relative_costs
        self._parts = []
        self._found = []
        self._rows = 0
        self._bytes_up = self._bytes_down = 0
        self.seconds = dict.fromkeys(("edge", "wait", *SECONDS), 0.0)

    def add(self, routed, seconds):
        """Takes what a batch has come to here; returns its first row."""
        first, self._rows = self._rows, self._rows + len(routed.exit_index)
        # Without what is sent, which is large.
        routed = dataclasses.replace(routed, feature=None, carry=None)
        self._parts.append(routed)
        self.seconds["edge"] += seconds
        return first

    def put(self, rows, answers):
        """Takes answers for some rows, counted over all batches."""
        self._found.append((rows, answers))
        self._bytes_up += answers.bytes_up
        self._bytes_down += answers.bytes_down
        for name in SECONDS:
            self.seconds[name] += answers.seconds[name]

    def result(self):
        """All of it as a `SplitResult`."""
        predictions, exit_index, score = (
            _joined([getattr(part, name) for part in self._parts])
            for name in ("predictions", "exit_index", "score")
        )
        # As numbers at first: texts take NumPy much longer.
        answered_by = np.zeros(self._rows, "int64")
        first = 0
        for part in self._parts:
            # Until there is an answer for them.
            answered_by[first + part.staying] = _DEGRADED
            first += len(part.exit_index)
        for rows, answers in self._found:
            predictions[rows] = answers.predictions
            exit_index[rows] = answers.exit_index
            score[rows] = answers.score
            answered_by[rows] = np.where(answers.degraded, _DEGRADED, _CLOUD)
        return SplitResult(
            predictions=predictions,
            exit_index=exit_index,
            score=score,
            relative_cost=self._costs[exit_index],
            answered_by=_NAMES[answered_by],
            bytes_up=self._bytes_up,
            bytes_down=self._bytes_down,
            seconds=self.seconds,
        )


def _joined(arrays):
    """All rows as one array; what a stage returned may be written over."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
