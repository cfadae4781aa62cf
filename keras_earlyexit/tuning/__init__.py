"""Tuning: how many exits, where, and with which thresholds, for a budget."""

from keras_earlyexit import _lazy

_HOMES = {
    "ExitHyperModel": "hypermodel",
    "ExitSearch": "results",
    "OptunaObjective": "optuna_trials",
    "Point": "results",
    "Pruning": "pruning",
    "SearchSpace": "space",
    "Split": "costs",
    "TrialRecord": "records",
    "best_of": "records",
    "pareto_front": "front",
    "plot_front": "pictures",
    "plot_places": "pictures",
    "plot_trials": "pictures",
    "read_trials": "records",
    "search_exits": "searching",
    "train_candidates": "training",
    "write_hparams": "hparams",
}

__getattr__, __dir__, __all__ = _lazy.attach(__name__, _HOMES)
