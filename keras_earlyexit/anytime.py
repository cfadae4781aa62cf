"""Answers by a deadline: the deepest exit that there is time for."""

import time
import warnings

import numpy as np

from keras_earlyexit.inputs import as_inputs, as_zeros, num_rows
from keras_earlyexit.routing import Router


class Anytime:
    """Answers with the deepest exit that fits a deadline.

    How long each exit takes is measured once for some batch sizes; other
    sizes are taken to last as long as the next larger one measured, and
    batches beyond the largest to grow in proportion.

    Args:
        model: An `EarlyExitModel`.
        batch_sizes: Batch sizes to measure, in samples.
        repeats: Runs per batch size and exit; more give steadier figures.
        quantile: Share of the runs that were faster than what is counted on.
        clock: A function that returns seconds; for tests.

    Attributes:
        milliseconds: Dict from a batch size to an array (E + 1,) of the
            milliseconds to answer a batch at each exit.

    Raises:
        ValueError: If a batch size is below 1.

    Example:

    ```python
    anytime = ee.Anytime(model, batch_sizes=(1, 32))
    result = anytime.predict_exits(x, deadline_ms=4.0)
    ```

    Reference:
        Huang et al., Multi-Scale Dense Networks for Resource Efficient Image
        Classification, ICLR 2018, arXiv 1703.09844 (anytime prediction).
    """

    def __init__(
        self,
        model,
        batch_sizes=(1, 32),
        repeats=30,
        quantile=0.95,
        clock=time.perf_counter,
    ):
        sizes = sorted({int(size) for size in batch_sizes})
        if not sizes or sizes[0] < 1:
            raise ValueError(
                "Expected batch sizes of at least 1. Received: "
                f"batch_sizes={batch_sizes!r}."
            )
        self._model = model
        self._router = Router(model)
        self._early = len(model.exit_names) - 1
        self.milliseconds = {
            size: self._measure(size, repeats, quantile, clock)
            for size in sizes
        }

    def deepest_exit(self, deadline_ms, batch_size=1):
        """Index of the deepest exit that fits; `None` if none does.

        Args:
            deadline_ms: Milliseconds until the batch is to be answered.
            batch_size: Samples in the batch.

        Raises:
            ValueError: If the deadline is no positive number.
        """
        if not deadline_ms > 0:
            raise ValueError(
                "Expected `deadline_ms` to be a positive number of "
                f"milliseconds. Received: deadline_ms={deadline_ms!r}."
            )
        fits = np.flatnonzero(self.expected(batch_size) <= deadline_ms)
        return int(fits[-1]) if len(fits) else None

    def expected(self, batch_size):
        """Milliseconds to answer a batch at each exit: array (E + 1,)."""
        for size, milliseconds in self.milliseconds.items():
            if batch_size <= size:
                return milliseconds
        return milliseconds * (batch_size / size)

    def predict_exits(self, x, deadline_ms, leave_early=False):
        """Answers one batch within a deadline.

        Args:
            x: Arrays or tensors, as in `EarlyExitModel.predict_exits`; routed
                as one batch.
            deadline_ms: Milliseconds until the answers are wanted, counted
                from the call. If even the first exit takes longer it answers
                all the same, with a warning.
            leave_early: Whether samples may leave before that exit, where the
                model's policy lets them.

        Returns:
            An `ExitResult`.

        Raises:
            ValueError: If the deadline is no positive number, or if `x` does
                not fit the model.
        """
        batch = as_inputs(x, self._model.net.input)
        rows = num_rows(batch)
        depth = self.deepest_exit(deadline_ms, rows)
        if depth is None:
            depth = 0
            warnings.warn(
                f"No exit answers {rows} samples in {deadline_ms:g} ms; "
                f"exit_0 is expected to take {self.expected(rows)[0]:.2f} ms.",
                stacklevel=2,
            )
        thresholds = self._thresholds(depth)
        if leave_early:
            given = self._model.policy.thresholds(self._early)
            thresholds[:depth] = given[:depth]
        return self._router.predict_exits(
            batch, batch_size=max(rows, 1), thresholds=thresholds
        )

    def _thresholds(self, depth):
        """Nobody leaves before an exit, everybody leaves there."""
        thresholds = np.full(self._early, np.inf, "float32")
        thresholds[depth:] = -np.inf
        return thresholds

    def _measure(self, size, repeats, quantile, clock):
        batch = as_zeros(self._model.net.input, size)
        found = []
        for depth in range(self._early + 1):
            times, thresholds = [], self._thresholds(depth)
            for _ in range(repeats + 2):
                start = clock()
                self._router.route(batch, thresholds)
                times.append(clock() - start)
            # The first ones compile.
            found.append(1000.0 * np.quantile(times[2:], quantile))
        return np.maximum.accumulate(found)
