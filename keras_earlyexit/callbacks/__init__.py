"""Callbacks that show how training goes, exit by exit."""

from keras_earlyexit import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__, {"LiveTable": "live_table", "TensorBoard": "tensorboard"}
)
