"""Heads that learn further classes: every exit gets more units."""

import dataclasses
import hashlib
import json

import keras
import numpy as np

from keras_earlyexit import call_graph, surgery
from keras_earlyexit.model import EarlyExitModel
from keras_earlyexit.splitting.segments import SegmentModel

#: What may stand behind a head's own layer.
_BEHIND = (
    keras.layers.Activation,
    keras.layers.Identity,
    keras.layers.Softmax,
)


def add_classes(model, names):
    """A copy of a model, or of a segment, whose exits know further classes.

    The rows of the old classes are kept bit by bit. That of a new class is
    their mean, w_new = mean_k w_k, so that its logit is the mean of the
    others and never the largest: every exit gives the same class as before,
    until the new ones are learned. Its confidence is a little lower, as there
    is more to choose from; choose thresholds anew.

    Segments that are widened one by one, on the machines that they are on,
    stay segments of one model: done with the same names on all of them, they
    can be trained together and merged. The widened and the old ones cannot.

    Args:
        model: An `EarlyExitModel` or a `SegmentModel` that answers with
            classes or labels.
        names: Names of the new classes, in the order of their numbers, which
            go on behind the old ones. Keep them: a model knows numbers.

    Returns:
        A model of the same kind, not compiled, with weights of its own.

    Raises:
        TypeError: If `model` is neither of the two.
        ValueError: If it answers with values, if an exit's layer is of
            another kind than `Dense` or `ExitBlock`, or if names are missing
            or twice the same.

    Example:

    ```python
    wider = ee.add_classes(model, ["zebra"])
    wider.compile("adam")
    wider.fit(x_all, y_all)  # old samples too, or they are forgotten
    ```
    """
    if not isinstance(model, (EarlyExitModel, SegmentModel)):
        raise TypeError(
            "Expected an EarlyExitModel or a SegmentModel. Received: "
            f"{model!r} (of type {type(model).__name__}). Make one with "
            "`ee.add_exits`."
        )
    names = _checked(names)
    if model.head.task == "regression":
        raise ValueError(
            "Expected a model that answers with classes or labels. Received: "
            f"'{model.name}', which answers with {model.head.units} values."
        )
    net = _widened(model, len(names))
    head = dataclasses.replace(model.head, units=model.head.units + len(names))
    if isinstance(model, SegmentModel):
        origin = dataclasses.replace(
            model.origin,
            weights_sha256=_digest(model.origin.weights_sha256, names),
        )
        return SegmentModel(
            net,
            head,
            keras.saving.serialize_keras_object(model.base),
            origin,
            model.position,
            name=model.name,
        )
    policy = keras.saving.serialize_keras_object(model.policy)
    wider = EarlyExitModel(
        net, head, policy=policy, cost=model.cost, name=model.name
    )
    wider.set_policy(wider.policy, given=model.has_given_policy)
    return wider


def _checked(names):
    found = [names] if isinstance(names, str) else list(names)
    if not found or not all(isinstance(x, str) and x for x in found):
        raise ValueError(
            "Expected the names of new classes, a list of text. Received: "
            f"names={names!r} (of type {type(names).__name__}). Pass for "
            "example ['zebra']."
        )
    if len(set(found)) < len(found):
        raise ValueError(f"Expected each name once. Received: names={names!r}.")
    return found


def _widened(model, added):
    graph = surgery.trace(model.net)
    replace = {}
    for name in model.exit_names:
        layer = _layer_of(graph, graph.outputs[name], model.head.units, name)
        if layer not in replace:
            config = layer.get_config()
            config["units"] += added
            replace[layer] = type(layer).from_config(config)
    wider = surgery.copy(graph, replace)
    for before, after in replace.items():
        after.trainable = before.trainable
        for old, new in zip(before.weights, after.weights, strict=True):
            new.assign(_with_rows(old, new.shape))
    return keras.Model(wider.inputs, wider.outputs, name=model.net.name)


def _layer_of(graph, tensor, units, name):
    """The layer whose units are the classes of an exit."""
    call = call_graph.producer(graph, tensor)
    while call is not None and isinstance(call.operation, _BEHIND):
        call = call_graph.producer(graph, call.inputs[0])
    layer = call and call.operation
    has_units = getattr(layer, "units", None) == units
    if not has_units or "units" not in layer.get_config():
        kind = type(layer).__name__
        raise ValueError(
            f"Expected exit '{name}' to end with a layer of {units} units, "
            "such as Dense or ExitBlock, and an activation at most. Received: "
            f"'{getattr(layer, 'name', None)}' ({kind}). Put a Dense layer "
            "there."
        )
    return layer


def _with_rows(old, shape):
    """A weight with the mean of its rows behind these, where it is wider."""
    value = keras.ops.convert_to_numpy(old.value)
    missing = shape[-1] - value.shape[-1] if shape else 0
    if not missing:
        return value
    mean = value.mean(axis=-1, keepdims=True, dtype="float64")
    more = np.repeat(mean.astype(value.dtype), missing, axis=-1)
    return np.concatenate([value, more], axis=-1)


def _digest(before, names):
    """What was cut and then widened: the same on every machine."""
    text = json.dumps([before, "add_classes", names])
    return hashlib.sha256(text.encode()).hexdigest()
