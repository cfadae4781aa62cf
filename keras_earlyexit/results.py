"""What a routed prediction returns."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class ExitResult:
    """The answers of a batch, and where each of them was given.

    Args:
        predictions: Array (N, classes), each sample's answer at the exit that
            it left at.
        exit_index: Integer array (N,), 0 for the first exit; the number of
            early exits stands for `final`.
        score: Float array (N,), the score that the sample left with; NaN at
            `final`, which has none.
        relative_cost: Float array (N,), cost of the exit taken over the cost
            of the plain model.
    """

    predictions: np.ndarray
    exit_index: np.ndarray
    score: np.ndarray
    relative_cost: np.ndarray

    @property
    def mean_cost(self):
        """Mean relative cost; NaN for an empty batch."""
        if not len(self):
            return float("nan")
        return float(np.mean(self.relative_cost))

    def exit_shares(self, num_exits):
        """Share of the samples that left at each of `num_exits` exits.

        Args:
            num_exits: Number of exits, `final` included.

        Returns:
            Float array (num_exits,) that sums to 1 (zeros for no samples).
        """
        counts = np.bincount(self.exit_index, minlength=num_exits)
        return counts / max(len(self), 1)

    def __len__(self):
        return len(self.exit_index)

    def __repr__(self):
        return (
            f"ExitResult({len(self)} samples, mean_cost={self.mean_cost:.4f}, "
            f"exits taken: {np.bincount(self.exit_index).tolist()})"
        )
