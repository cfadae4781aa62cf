"""Refiners: layers behind the exit blocks that an objective brings along.

A refiner makes an exit's prediction or confidence out of what the exit block
says and of what the refiners of earlier exits left, its *memory*. It is a
layer of the network like any other: saved with it, and part of the stage.
"""

import keras


class Refiner(keras.layers.Layer):
    """Behind one exit. Subclasses define `call`.

    It works in float32 under mixed precision, as the exit blocks do.

    Call arguments:
        prediction: Tensor (batch, ..., units) from the exit block.
        confidence: Tensor (batch, 1) from the exit block; `None` at `final`.
        memory: What the exit before left, (batch, m); `None` where it left
            nothing.

    Returns:
        A dict with `prediction`; for early exits `confidence` too, and
        `memory` (batch, m) where the next exit is to have one.

    Attributes:
        replaces_confidence: Whether it gives a confidence of its own, so that
            the one from the exit block is of no use.
    """

    replaces_confidence = False

    def __init__(self, **kwargs):
        # Sums and logarithms of small probabilities are lost in half precision.
        wide = keras.config.dtype_policy().compute_dtype == "float64"
        kwargs.setdefault("dtype", "float64" if wide else "float32")
        super().__init__(**kwargs)

    def call(self, prediction, confidence=None, memory=None):
        raise TypeError(f"{type(self).__name__} does not define `call`.")


def refine(refiners, heads):
    """Runs the refiners of all exits.

    Args:
        refiners: E + 1 layers or `None`.
        heads: E + 1 tuples (prediction, confidence); the last one's confidence
            is `None`.

    Returns:
        E + 1 such tuples.
    """
    refined, memory = [], None
    for refiner, (prediction, confidence) in zip(refiners, heads, strict=True):
        found = run(refiner, prediction, confidence, memory)
        memory = found.get("memory")
        refined.append((found["prediction"], found.get("confidence")))
    return refined


def run(refiner, prediction, confidence, memory):
    """What one refiner makes of an exit; without one, what went in."""
    if refiner is None:
        return {"prediction": prediction, "confidence": confidence}
    return refiner(prediction, confidence=confidence, memory=memory)


def same(refiners, others):
    """Whether refiners are of the same kinds, with the same options."""
    return [_kind(refiner) for refiner in refiners] == [
        _kind(refiner) for refiner in others
    ]


def _kind(refiner):
    if refiner is None:
        return None
    config = refiner.get_config()
    return type(refiner), {k: v for k, v in config.items() if k != "name"}
