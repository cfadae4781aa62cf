"""One layer as a model, which is what is counted."""

import keras


def functional(layer, *shapes, dtype="float32", **kwargs):
    inputs = [keras.Input(shape, dtype=dtype) for shape in shapes]
    outputs = layer(*inputs, **kwargs)
    return keras.Model(inputs[0] if len(inputs) == 1 else inputs, outputs)


def on_list(layer):
    """Lets a layer that takes a list be called on separate tensors."""
    return lambda *tensors: layer(list(tensors))
