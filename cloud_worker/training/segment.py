"""The segment that is trained here, as the learner wants it."""

import numpy as np

from keras_earlyexit import snapshots


class SegmentStepper:
    """Steps a `SegmentModel`. For one thread.

    Args:
        segment: A compiled `SegmentModel`.
    """

    def __init__(self, segment):
        self._segment = segment
        self._accuracies = [f"{x}_accuracy" for x in segment.exit_names]

    def step(self, arrays, labels, sample_weight):
        """One training step; its loss, and the accuracy of the last exit."""
        (feature,) = arrays
        logs = self._segment.learn(feature, labels, sample_weight).logs
        return {**logs, "accuracy": logs.get(self._accuracies[-1], np.nan)}

    def state(self):
        """All variables, the random state and the optimizer's included."""
        return snapshots.state_of(self._segment)

    def restore(self, arrays):
        """Goes back to what `state` gave."""
        snapshots.restore(self._segment, arrays)
