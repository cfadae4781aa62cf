"""Which places are in an object store."""

import re

_URL = re.compile("[a-z][a-z0-9+.-]+://.+", re.DOTALL)


def is_url(place):
    """Whether a place is a URL, as opposed to a path of this machine.

    Example:

    >>> is_url("s3://bucket/model"), is_url("models/s3"), is_url("C:/models")
    (True, False, False)
    """
    return isinstance(place, str) and _URL.fullmatch(place) is not None
