"""Tuning: how many exits, where, and with which thresholds, for a budget."""

from keras_earlyexit import _lazy

_HOMES = {
    "pareto_front": "front",
}

__getattr__, __dir__, __all__ = _lazy.attach(__name__, _HOMES)
