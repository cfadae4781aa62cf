"""One HTML file that says what a model with exits does on a data set."""

from keras_earlyexit import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__, {"write_report": "writing"}
)
