"""Policies: how an exit's score is computed, and the thresholds it meets.

A sample leaves at the first exit whose score is strictly above that exit's
threshold. The score is computed inside the stage, from the exit's
probabilities, its confidence and, for policies that look back, a `carry` that
the earlier exits left; thresholds stay outside, so changing one rebuilds
nothing.
"""

from keras_earlyexit.policies import confidence, patience, probability
from keras_earlyexit.policies.base import (
    Policy,
    carry_shape_of,
    get,
    register,
    score_of,
)
from keras_earlyexit.policies.layer import Score

__all__ = [
    "Policy",
    "Score",
    "carry_shape_of",
    "confidence",
    "get",
    "patience",
    "probability",
    "register",
    "score_of",
]
