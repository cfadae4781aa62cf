"""Whether training fits into the memory that it may take."""

from keras_earlyexit.planning import model_facts

#: What the backend takes for its first step, whatever the model.
STEP_BYTES = 192 << 20
#: Activations, and the gradients that come back over them.
_COPIES = 2
_MB = 1 << 20


class MemoryLimitExceeded(ValueError):
    """Training does not fit, or does not any more."""


class MemoryLimit:
    """A bound on the resident memory of this process.

    What is there already is measured; what training adds is estimated before
    it starts, as `ee.plan_cut` does: gradients, and activations of a batch.
    The optimizer's state is there already. The journal is on the disk, and
    has a bound of its own.

    Args:
        segment: A compiled `SegmentModel`.
        limit_bytes: The bound.
        measure: Returns the bytes that are resident now.

    Raises:
        ValueError: If the bound is not positive.
    """

    def __init__(self, segment, limit_bytes, measure=None):
        if not limit_bytes > 0:
            raise ValueError(
                "Expected a memory limit above 0 bytes. Received: "
                f"{limit_bytes!r} (of type {type(limit_bytes).__name__})."
            )
        self._limit, self._measure = limit_bytes, measure or resident_bytes
        facts = model_facts.of_network(segment.net)
        self._fixed = STEP_BYTES + facts.trainable_bytes
        self._each = _COPIES * facts.activation_bytes

    def needed(self, batch_size):
        """Bytes that this process is expected to need at most."""
        return self._measure() + self._fixed + self._each * batch_size

    def check_start(self, batch_size):
        """Refuses a batch size that does not fit.

        Args:
            batch_size: Samples in a batch.

        Raises:
            MemoryLimitExceeded: With the batch size that does, if one does.
        """
        needed = self.needed(batch_size)
        if needed <= self._limit:
            return
        room = self._limit - self.needed(0)
        most = int(room // max(self._each, 1))
        if most >= 1:
            advice = f"A batch_size of {most} fits."
        else:
            advice = (
                f"No batch size does: give it {_mb(self.needed(1))} MB, cut "
                "the model behind an earlier exit, or load less data."
            )
        raise MemoryLimitExceeded(
            f"Expected training that fits into {_mb(self._limit)} MB. "
            f"Received: batch_size={batch_size}, for which about "
            f"{_mb(needed)} MB are needed ({_mb(self._measure())} MB are "
            f"taken now). {advice}"
        )

    def check(self):
        """Ends training that has outgrown the estimate.

        Raises:
            MemoryLimitExceeded: If more is taken than the bound.
        """
        taken = self._measure()
        if taken > self._limit:
            raise MemoryLimitExceeded(
                f"Expected training that stays within {_mb(self._limit)} MB. "
                f"Received: {_mb(taken)} MB. Go on from the last checkpoint "
                "with smaller batches, or give it more."
            )


def resident_bytes():
    """Bytes of this process that are in memory now."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10
    raise OSError(
        "Expected a system that tells the memory of a process. Received: one "
        "without it. Leave out the memory limit."
    )


def _mb(num_bytes):
    return f"{num_bytes / _MB:,.0f}"
