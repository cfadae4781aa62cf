"""Names of the forms in which features cross the wire."""

import dataclasses

DTYPES = ("float32", "float16", "bfloat16", "uint8", "int8", "uint4")
#: Those whose numbers are counted off in steps, and how many bits a step has.
STEPPED = {"uint8": 8, "int8": 8, "uint4": 4}
_CHANNEL = "_channel"
_ZSTD = "+zstd"


@dataclasses.dataclass(frozen=True)
class Codec:
    """The form in which features cross the wire.

    | name | bytes per number | error of a number |
    | --- | --- | --- |
    | `float32` | 4 | 0 |
    | `float16` | 2 | 2^-11 of it; saturates at 65504 |
    | `bfloat16` | 2 | 2^-8 of it |
    | `uint8`, `int8` | 1 | 1/510 of the tensor's range |
    | `uint8_channel`, `int8_channel` | 1 | 1/510 of its channel's range |
    | `uint4+zstd` | at most 0.5 | 1/30 of the tensor's range |
    | `uint4_channel+zstd` | at most 0.5 | 1/30 of its channel's range |

    Each may end in `+zstd`, which compresses what is left; numbers in 4 bits
    are small by that alone, since they take a byte each otherwise. Whole
    numbers, such as a raw image, keep their values in all of them.

    Args:
        dtype: One of `DTYPES`.
        per_channel: Whether each entry of the last axis has a scale.
        is_compressed: Whether the bytes are compressed.

    Example:

    >>> str(Codec.parse("uint8_channel+zstd"))
    'uint8_channel+zstd'
    """

    dtype: str = "float32"
    per_channel: bool = False
    is_compressed: bool = False

    @classmethod
    def parse(cls, name):
        """The codec of a name.

        Args:
            name: One of `NAMES`, or a `Codec`, which is returned as it is.

        Returns:
            A `Codec`.

        Raises:
            ValueError: If there is none of that name.
        """
        if isinstance(name, cls):
            return name
        codec = _BY_NAME.get(name) if isinstance(name, str) else None
        if codec is None:
            raise ValueError(
                f"Expected a codec. Received: {name!r} (of type "
                f"{type(name).__name__}). Choose one of: {', '.join(NAMES)}."
            )
        return codec

    def __str__(self):
        return (
            self.dtype
            + _CHANNEL * self.per_channel
            + _ZSTD * self.is_compressed
        )


_ALL = [
    Codec(dtype, per_channel, is_compressed)
    for per_channel in (False, True)
    for dtype in (STEPPED if per_channel else DTYPES)
    for is_compressed in (False, True)
    if is_compressed or dtype != "uint4"
]
_BY_NAME = {str(codec): codec for codec in _ALL}
#: Names of all codecs.
NAMES = tuple(_BY_NAME)
