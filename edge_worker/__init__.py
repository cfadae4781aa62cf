"""Answers what an early exit can, and asks a cloud worker for the rest.

Runs the first segment of a model that was cut, without Keras and TensorFlow
where the bundle's format is `litert` or `onnx`. `EdgeTrainer`, which trains it,
needs Keras.
"""

from keras_earlyexit import _lazy

_HOMES = {
    "AsyncEdgeWorker": "asynchronous",
    "EdgeTrainer": "training.trainer",
    "EdgeWorker": "worker",
    "ReloadingWorker": "reloading",
    "SplitResult": "results",
}

__getattr__, __dir__, __all__ = _lazy.attach(__name__, _HOMES)
