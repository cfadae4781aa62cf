"""How long a cloud worker takes for a call, as a value to keep and to ask."""

import dataclasses

import numpy as np

from keras_earlyexit import json_values
from keras_earlyexit.cost.measured import amount, count, positive, put, put_all

_FORMAT, _VERSION = "keras_earlyexit service", 1


@dataclasses.dataclass(frozen=True)
class Service:
    """What a cloud worker takes for the calls of edges.

    A batch of B rows takes one of its cores for the time of its stages at B;
    besides, every call takes a core for `call_seconds`: its message is received
    and decoded, and the answer sent. `edge-worker load --calibrate` measures
    both.

    Args:
        name: Name of the model.
        batch_sizes: The batch sizes measured, rising: (B,).
        stage_seconds: Mean seconds of the stages for a batch: (B,).
        call_seconds: Processor seconds of a call outside the stages.
        rows: Samples of a call, for which that was measured.
        round_trip_seconds: What a lone call takes beyond its stages.
        bytes_up: Bytes of a call's request.
        bytes_down: Bytes of the answer.

    Raises:
        TypeError, ValueError: If a value is of another form or not finite.

    Example:

    >>> service = Service("digits", (1, 8), (0.001, 0.004), 0.0002)
    >>> round(service.rows_per_core_second(8))
    1429
    """

    name: str
    batch_sizes: tuple
    stage_seconds: tuple
    call_seconds: float
    rows: int = 1
    round_trip_seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0

    def __post_init__(self):
        if not isinstance(self.name, str):
            raise TypeError(
                "Expected `name` to be text. Received: "
                f"{json_values.shown(self.name)}."
            )
        put_all(self, "batch_sizes", count)
        put_all(self, "stage_seconds", positive)
        put(self, "rows", count)
        for name in (
            *("call_seconds", "round_trip_seconds"),
            *("bytes_up", "bytes_down"),
        ):
            put(self, name, amount)
        rising = sorted(set(self.batch_sizes))
        if not rising or list(self.batch_sizes) != rising:
            raise ValueError(
                "Expected batch sizes that rise, at least one. Received: "
                f"batch_sizes={self.batch_sizes!r}."
            )
        if len(self.stage_seconds) != len(rising):
            raise ValueError(
                f"Expected `stage_seconds` to have {len(rising)} values, as "
                "`batch_sizes` does. Received: "
                f"{len(self.stage_seconds)} values."
            )

    def seconds(self, rows):
        """Seconds of the stages for a batch.

        Between the sizes measured it is interpolated, beyond the largest it
        grows in proportion.

        Args:
            rows: Samples in the batch.

        Returns:
            A float.
        """
        largest = self.batch_sizes[-1]
        if rows > largest:
            return self.stage_seconds[-1] * rows / largest
        return float(np.interp(rows, self.batch_sizes, self.stage_seconds))

    def rows_per_core_second(self, batch_size):
        """Samples that one core answers in a second, in full batches.

        Args:
            batch_size: Samples in a batch.

        Returns:
            A float: 1 / (stage_seconds / batch_size + call_seconds / rows).
        """
        each = self.seconds(batch_size) / batch_size
        return 1 / (each + self.call_seconds / self.rows)

    def save(self, path):
        """Writes it to a JSON file, whole or not at all."""
        fields = dataclasses.asdict(self)
        json_values.write(path, json_values.render(fields, _FORMAT, _VERSION))

    @classmethod
    def load(cls, path):
        """Reads it from a file that `save` wrote; nothing in it is trusted.

        Raises:
            OSError: If there is no such file.
            TypeError, ValueError: If it is too large, no such JSON, or says
                something that cannot be.
        """
        found = json_values.parse(
            json_values.read(path), _FORMAT, _VERSION, "service", "Measure it"
        )
        return json_values.made(cls, "service", found)
