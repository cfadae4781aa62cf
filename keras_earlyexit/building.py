"""`add_exits` and `strip_exits`: exits on, exits off."""

import types
import warnings

import keras

from keras_earlyexit import blocks, call_graph, exit_graph, stages, surgery
from keras_earlyexit import cost as cost_module
from keras_earlyexit import placement as placement_module
from keras_earlyexit.cost import opening
from keras_earlyexit.model import EarlyExitModel
from keras_earlyexit.tasks import infer_head


def add_exits(
    model,
    exits=2,
    *,
    placement="pareto",
    block="pool",
    policy=None,
    cost="macs",
    task=None,
    copy=False,
    name=None,
):
    """Gives a Keras model several places to answer.

    The layers are shared with `model`, so training changes the weights of
    both; nothing else about `model` changes. Its compile state is not taken
    over: compile the result.

    Args:
        model: A built functional or `Sequential` Keras model with one output.
        exits: Number of early exits, or a list of layer names, or a list of
            fractions of the model's MACs in (0, 1).
        placement: The rule that a number of exits is placed by: `"pareto"`,
            `"fine"`, `"linear"`, `"golden"`, `"even"`, or a callable (see
            `ee.placement`).
        block: The exit block: `"pool"`, `"bnpool"`, `"plain"`, `"conv"`,
            `"token"`, an `ExitBlock`, or a callable (see `ee.blocks.attach`).
            A model that answers at every position (segmentation, tagging)
            needs `"dense"`.
        policy: How exits are scored (a name or a `Policy`); `None` takes the
            policy that goes with the objective given to `compile`.
        cost: How cost is counted, `"macs"` or the EENets authors' `"eenets"`.
        task: `"classification"`, `"multilabel"` or `"regression"`; `None`
            reads it off the model's head.
        copy: Whether to work on an independent copy of `model`.
        name: Name of the result; `None` takes the model's.

    Returns:
        An `EarlyExitModel`.

    Raises:
        TypeError: If `model` is no functional or `Sequential` model.
        ValueError: If an exit cannot be placed, or if the head does not tell
            the task.

    Example:

    ```python
    plain = ee.backbones.resnet_cifar(20, (32, 32, 3), 10)
    model = ee.add_exits(plain, exits=2)
    model.compile("adam")
    model.fit(x, y)
    answers = model.predict(x)
    ```

    Reference:
        Demir and Akbas, Early-exit Convolutional Neural Networks,
        arXiv 2409.05336.
    """
    if isinstance(model, EarlyExitModel):
        raise TypeError(
            f"Model '{model.name}' has exits already. Received: an "
            "EarlyExitModel. Take them off first: "
            "`add_exits(ee.strip_exits(model), ...)`."
        )
    graph, head = opened(model, task)
    if copy:
        graph = surgery.copy(graph)
    _warn_of_uncounted(graph, cost)
    places = placement_module.place(graph, exits, placement, cost)
    net = hang(graph, head, [(place, block) for place in places], model.name)
    return EarlyExitModel(
        net, head, policy=policy, cost=cost, name=name or model.name
    )


def opened(model, task=None):
    """The graph of a plain model that can have exits, and its head.

    Args:
        model: A built functional or `Sequential` Keras model.
        task: As in `add_exits`.

    Returns:
        `(graph, head)`: a `call_graph.CallGraph` and a `tasks.Head`.

    Raises:
        TypeError, ValueError: As in `add_exits`.
    """
    graph = surgery.trace(model)
    _check_graph(model, graph)
    return graph, infer_head(model, graph, task)


def hang(graph, head, hanging, name):
    """A network with exits.

    Args:
        graph: As `opened` gives it.
        head: The same.
        hanging: Pairs of a `placement.Place` and an exit block, in the order
            in which they run. Several at one place are for training only: such
            a network cannot be routed.
        name: Name of the network.

    Returns:
        A functional Keras model.
    """
    _check_names(graph, len(hanging))
    if not all(isinstance(block, str) for _, block in hanging):
        surgery.reserve_names(graph)
    outputs = {}
    (final,) = keras.tree.flatten(graph.outputs)
    for i, (place, block) in enumerate(hanging):
        exit_name = exit_graph.exit_name(i)
        prediction, confidence = blocks.attach(
            block, place.tensor, head, exit_name
        )
        _check_prediction(prediction, final, exit_name)
        outputs[exit_name] = prediction
        outputs[exit_graph.confidence_name(exit_name)] = confidence
    outputs[exit_graph.FINAL] = final
    outputs[exit_graph.FINAL_CONFIDENCE] = _final_confidence(graph)
    return _network(graph.inputs, outputs, name)


def strip_exits(model):
    """Takes the exits off: the plain Keras model back.

    Args:
        model: An `EarlyExitModel`.

    Returns:
        A functional Keras model that shares the weights and gives the same
        answers as `final`. It is not compiled.

    Raises:
        TypeError: If `model` is no `EarlyExitModel`.

    Example:

    ```python
    plain = ee.strip_exits(model)
    plain.save("plain.keras")
    ```
    """
    if not isinstance(model, EarlyExitModel):
        raise TypeError(
            "Expected an EarlyExitModel. Received: "
            f"{model!r} (of type {type(model).__name__})."
        )
    net = model.net
    return keras.Model(net.input, net.output[exit_graph.FINAL], name=net.name)


def _network(inputs, outputs, name):
    try:
        return keras.Model(inputs, outputs, name=name)
    except ValueError as error:
        if "unique" not in str(error):
            raise
        raise ValueError(
            "Expected the layers that the `block` callable makes to have "
            f"names that the model and its other exits have not. {error} Leave "
            "out `name=` in the callable."
        ) from error


def _final_confidence(graph):
    """A sigmoid unit on what the model's own head reads.

    No answer depends on it, so it costs nothing when answering; a few
    objectives train it.
    """
    vector = graph.calls[-1].inputs[0]
    complete = opening.complete(graph.calls)
    for call, counted in zip(graph.calls, complete, strict=True):
        if cost_module.call_cost(counted).macs:
            vector = call.inputs[0]
    # Named layers: the automatic name of an operation may be taken already.
    if len(vector.shape) > 3:
        vector = keras.layers.Reshape(
            (-1, vector.shape[-1]),
            name=f"{exit_graph.FINAL_CONFIDENCE}_positions",
        )(vector)
    if len(vector.shape) > 2:
        vector = keras.layers.GlobalAveragePooling1D(
            data_format="channels_last",
            name=f"{exit_graph.FINAL_CONFIDENCE}_pool",
        )(vector)
    return keras.layers.Dense(
        1,
        activation="sigmoid",
        dtype="float32",
        name=exit_graph.FINAL_CONFIDENCE,
    )(vector)


def _check_prediction(prediction, final, exit_name):
    if prediction.shape[1:] != final.shape[1:]:
        hint = ""
        if len(final.shape) > 2:
            hint = (
                " The model answers at every position: pass `block='dense'`, "
                "or a callable that answers there too."
            )
        raise ValueError(
            f"Expected '{exit_name}' to answer as the model does, in shape "
            f"{final.shape}. Received: an exit block that answers in shape "
            f"{prediction.shape}.{hint}"
        )


def _warn_of_uncounted(graph, cost):
    uncounted = {
        name: None
        for call in opening.complete(graph.calls)
        for name in cost_module.call_cost(call, cost).uncounted
    }
    if uncounted:
        warnings.warn(
            f"The cost of {', '.join(uncounted)} could not be counted and is "
            "taken as 0: where exits go and what they save is too low by that "
            "much. See `ee.cost.count(model)`.",
            stacklevel=3,
        )


def _check_graph(model, graph):
    """Refuses models that cannot be routed or saved."""
    outputs = keras.tree.flatten(graph.outputs)
    if len(outputs) != 1:
        raise ValueError(
            "Expected a model with one output, its prediction. Received: "
            f"'{model.name}' with {len(outputs)} outputs "
            f"{[tensor.name for tensor in outputs]}. Build a model with one: "
            "`keras.Model(model.input, model.outputs[i])`."
        )
    if call_graph.producer(graph, outputs[0]) is None:
        raise ValueError(
            "Expected a model that computes its output. Received: "
            f"'{model.name}', which hands on its input '{outputs[0].name}'."
        )
    for tensor in keras.tree.flatten(graph.inputs):
        if tensor.shape[0] is not None:
            raise ValueError(
                "Expected a model whose batch size is free, since fewer "
                "samples reach every next exit. Received: input "
                f"'{tensor.name}' of shape {tensor.shape}. Build the model "
                "with `keras.Input(shape=...)` instead of `batch_shape`."
            )
    for call in graph.calls:
        operation = call.operation
        function = getattr(operation, "function", None)
        if (
            isinstance(operation, keras.layers.Lambda)
            and isinstance(function, types.FunctionType)
            and function.__name__ == "<lambda>"
        ):
            raise ValueError(
                "Expected layers that can be saved. Received: Lambda layer "
                f"'{call.name}' around a Python lambda, which Keras cannot "
                "load safely. Write it with `keras.ops`, or as a layer class "
                "with `@keras.saving.register_keras_serializable()`."
            )


def _check_names(graph, count):
    """Refuses layer names that the exits need for themselves."""
    reserved = {stages.FEATURE, stages.CARRY, exit_graph.FINAL_CONFIDENCE}
    reserved |= {
        f"{exit_graph.FINAL_CONFIDENCE}_{part}"
        for part in ("positions", "pool")
    }
    reserved |= {exit_graph.exit_name(i) for i in range(count)}
    reserved |= {f"{exit_graph.exit_name(i)}_score" for i in range(count)}
    names = {tensor.name for tensor in keras.tree.flatten(graph.inputs)}
    names |= {call.name for call in graph.calls}
    taken = sorted(reserved & names)
    if taken:
        raise ValueError(
            f"Expected the names {taken} to be free for the exits. Received: "
            "a model whose own layers have them. Rename these layers."
        )
