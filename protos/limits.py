"""How much a message may hold."""

import dataclasses
import math

#: Largest tensor, decoded, whose spec leaves other sizes than the batch open.
MAX_OPEN_BYTES = 64 << 20
MAX_TENSORS = 8
MAX_RANK = 6
# What protobuf and gRPC count with.
_MAX_MESSAGE_BYTES = (1 << 31) - 1
_MARGIN_BYTES = 64 << 10
# Of each number once decoded; int64, the widest, as well as float32.
_WIDE = ("int64", "uint64", "float64")


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much one message may hold.

    Args:
        max_rows: Samples in a batch.
        max_message_bytes: Bytes of a message, as it crosses the wire.
        max_tensors: Tensors in a message.
        max_rank: Axes of a tensor, the batch included.

    Raises:
        ValueError: If one of them is no positive integer.
    """

    max_rows: int
    max_message_bytes: int
    max_tensors: int = MAX_TENSORS
    max_rank: int = MAX_RANK

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or not 1 <= value <= _MAX_MESSAGE_BYTES:
                raise ValueError(
                    f"Expected {field.name} from 1 to {_MAX_MESSAGE_BYTES}. "
                    f"Received: {value!r} (of type {type(value).__name__}). "
                    "Pass a positive integer."
                )

    @classmethod
    def for_specs(cls, specs, max_rows):
        """The limits of a model: twice its largest batch of features.

        Args:
            specs: What a stage takes, objects with `.shape` and `.dtype`.
            max_rows: Samples in a batch.

        Returns:
            `Limits`, with 64 KiB for all else in a message.

        Raises:
            ValueError: If a batch of that many rows cannot be one message.

        Example:

        >>> from protos.identity import Feature
        >>> spec = Feature("feature", (None, 8, 8, 16), "float32")
        >>> Limits.for_specs([spec], max_rows=32).max_message_bytes
        327680
        """
        num_bytes = 2 * sum(_batch_bytes(spec, max_rows) for spec in specs)
        num_bytes += _MARGIN_BYTES
        if num_bytes > _MAX_MESSAGE_BYTES:
            raise ValueError(
                f"Expected batches of features below "
                f"{_MAX_MESSAGE_BYTES // 2} bytes. Received: {max_rows} rows, "
                f"which make messages of {num_bytes} bytes. Lower max_rows to "
                f"{max(1, max_rows * _MAX_MESSAGE_BYTES // num_bytes)}."
            )
        return cls(max_rows=max_rows, max_message_bytes=num_bytes)


def _batch_bytes(spec, max_rows):
    if None in spec.shape[1:]:
        return MAX_OPEN_BYTES
    itemsize = 8 if spec.dtype in _WIDE else 4
    return max_rows * math.prod(spec.shape[1:]) * itemsize
