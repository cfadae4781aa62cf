"""Splits with a slice, such as `train[:90%]`, as TFDS writes them."""

import re

_PART = re.compile(r"(\w+)(?:\[(?:(-?\d+)(%?))?:(?:(-?\d+)(%?))?\])?")


def ranges(split, sizes):
    """The rows that a split stands for.

    Args:
        split: Name of a split, maybe with a slice; or a sum of them.
        sizes: Dict from the name of each split to how many rows it has.

    Returns:
        A list of `(name, first, stop)`, or `None` if there is no such split,
        or if it goes beyond its rows.

    Example:

    >>> from keras_earlyexit import slices
    >>> slices.ranges("train[10%:]+test", {"train": 50, "test": 20})
    [('train', 5, 50), ('test', 0, 20)]
    """
    found = []
    for part in split.split("+"):
        match = _PART.fullmatch(part.strip())
        if match is None or match[1] not in sizes:
            return None
        size = sizes[match[1]]
        first = _boundary(match[2], match[3], size, 0)
        stop = _boundary(match[4], match[5], size, size)
        if not (0 <= first <= size and 0 <= stop <= size):
            return None
        found.append((match[1], first, stop))
    return found


def _boundary(number, percent, size, default):
    if number is None:
        return default
    value = round(int(number) * size / 100) if percent else int(number)
    return value + size if value < 0 else value
