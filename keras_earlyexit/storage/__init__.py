"""What outlives a machine: objects in a store, and states that are committed.

An object store has no folders and no renaming. So what belongs together is
written under a name that nobody has used, and one small object, written last,
says that it is there.
"""

from keras_earlyexit import _lazy

_HOMES = {
    "Commits": "commits",
    "Store": "objects",
    "is_url": "urls",
}

__getattr__, __dir__, __all__ = _lazy.attach(__name__, _HOMES)
