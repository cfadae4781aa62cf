"""What an edge worker answers."""

import dataclasses

import numpy as np

from keras_earlyexit.results import ExitResult

EDGE, CLOUD, DEGRADED = "edge", "cloud", "degraded"
ANSWERED_BY = (EDGE, CLOUD, DEGRADED)


@dataclasses.dataclass(frozen=True, repr=False)
class SplitResult(ExitResult):
    """The answers of a batch, where they were given and by whom.

    Args:
        answered_by: String array (N,): `"edge"` for samples that left here,
            `"cloud"` for those that the cloud worker answered, `"degraded"`
            for those that it should have answered and did not. A degraded
            answer is that of the deepest exit that was reached.
        bytes_up: Bytes of the requests that were sent.
        bytes_down: Bytes of the replies.
        seconds: Dict of what took how long: `edge` for the stages here,
            `wait` for what was then waited for; of the requests, added up,
            `encode`, `link`, `cloud_queue`, `cloud_compute`, `decode`.
    """

    answered_by: np.ndarray
    bytes_up: int
    bytes_down: int
    seconds: dict

    @property
    def counts(self):
        """Dict of how many samples were answered by whom."""
        return {
            name: int(np.count_nonzero(self.answered_by == name))
            for name in ANSWERED_BY
        }

    def __repr__(self):
        return (
            f"SplitResult({len(self)} samples, {self.counts}, "
            f"mean_cost={self.mean_cost:.4f}, {self.bytes_up} bytes up, "
            f"{self.bytes_down} bytes down)"
        )
