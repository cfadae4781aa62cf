"""Training objectives, one file per family. `get` finds one by name."""

from keras_earlyexit.objectives import eenets, schedule
from keras_earlyexit.objectives.base import Objective, get
from keras_earlyexit.objectives.schedule import TwoStage

__all__ = ["Objective", "TwoStage", "eenets", "get", "schedule"]
