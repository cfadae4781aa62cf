"""The segment that is trained here, as the learner wants it."""

import numpy as np

from keras_earlyexit import snapshots


class SegmentStepper:
    """Steps a `SegmentModel`. For one thread.

    Args:
        segment: A compiled `SegmentModel`.
        outlet: The `Outlet` for what goes on to a further worker, or `None`.
    """

    def __init__(self, segment, outlet=None):
        self._segment, self._outlet = segment, outlet
        self._accuracies = [f"{x}_accuracy" for x in segment.exit_names]

    def step(self, arrays, labels, sample_weight, **place):
        """One training step.

        Args:
            arrays: Tuple of one array, the feature.
            labels: Array of labels.
            sample_weight: Array (batch,) or `None`.
            **place: As `Outlet.add` takes it.

        Returns:
            Its loss, and the accuracy of the last exit, in a dict. The loss
            is NaN where a further worker could not learn from what came out.
        """
        (feature,) = arrays
        logs, outputs = self._segment.learn(feature, labels, sample_weight)
        logs = {**logs, "accuracy": logs.get(self._accuracies[-1], np.nan)}
        if self._outlet is not None and np.isfinite(logs["loss"]):
            if not np.isfinite(outputs["feature"]).all():
                return {**logs, "loss": np.nan}
            self._outlet.add(outputs, labels, sample_weight, **place)
        return logs

    def state(self):
        """All variables, the random state and the optimizer's included, and
        what is to go on."""
        found = snapshots.state_of(self._segment)
        return found + (self._outlet.state() if self._outlet else [])

    def restore(self, arrays):
        """Goes back to what `state` gave."""
        own = len(arrays)
        if self._outlet is not None:
            own = len(snapshots.variables_of(self._segment))
            self._outlet.restore(arrays[own:])
        snapshots.restore(self._segment, arrays[:own])
