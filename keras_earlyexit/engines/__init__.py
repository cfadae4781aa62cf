"""What runs the route on each backend.

Weights and thresholds are arguments or variables of what is compiled, never
constants: the current ones always answer. An engine is called with a batch and
thresholds (E,), and returns three arrays: predictions, indices of the exits
taken, scores.
"""

import keras

from keras_earlyexit.engines.graph import GraphEngine
from keras_earlyexit.engines.loop import JaxEngine, LoopEngine, TorchEngine

__all__ = [
    "GraphEngine",
    "JaxEngine",
    "LoopEngine",
    "TorchEngine",
    "engine_for",
]

_ENGINES = {
    "tensorflow": GraphEngine,
    "jax": JaxEngine,
    "torch": TorchEngine,
}


def engine_for(model):
    """The engine of the present backend, for a model's present policy."""
    return _ENGINES.get(keras.backend.backend(), LoopEngine)(model)
