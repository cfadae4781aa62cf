"""Measures what the stages of a model or a bundle take on this machine."""

from keras_earlyexit import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, {"profile": "measuring"})
