"""Tuning: how many exits, where, and with which thresholds, for a budget."""

from keras_earlyexit import _lazy

_HOMES = {
    "ExitSearch": "results",
    "Point": "results",
    "Split": "costs",
    "pareto_front": "front",
    "search_exits": "searching",
    "train_candidates": "training",
}

__getattr__, __dir__, __all__ = _lazy.attach(__name__, _HOMES)
