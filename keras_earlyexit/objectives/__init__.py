"""Training objectives, one file per family. `get` finds one by name."""

from keras_earlyexit.objectives import (
    boosted,
    confidence_gated,
    distillation,
    eenets,
    exit_scheduling,
    hierarchical,
    jei,
    joint,
    l2w,
    schedule,
    zero_time_waste,
)
from keras_earlyexit.objectives.base import Objective, get
from keras_earlyexit.objectives.schedule import TwoStage

__all__ = [
    "Objective",
    "TwoStage",
    "boosted",
    "confidence_gated",
    "distillation",
    "eenets",
    "exit_scheduling",
    "get",
    "hierarchical",
    "jei",
    "joint",
    "l2w",
    "schedule",
    "zero_time_waste",
]
