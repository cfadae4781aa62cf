"""Stages as ONNX files, by tf2onnx."""

import contextlib

import numpy as np

from keras_earlyexit.exporting.functions import as_function

OPSET = 18


def convert(stage, specs):
    """Converts a stage.

    Args:
        stage: A stage of a model.
        specs: The `TensorSpec` of what it takes.

    Returns:
        The bytes of an ONNX file.

    Raises:
        ImportError: If tf2onnx is not installed.
        ValueError: If it cannot convert something in the stage.
    """
    try:
        import tf2onnx
    except ImportError as error:
        raise ImportError(
            "Expected tf2onnx to write a bundle of format 'onnx'. Received: "
            "an environment without. Install it with the extra `onnx`: pip "
            "install 'keras-earlyexit[onnx]'"
        ) from error
    function = as_function(stage, specs, plain=True)
    try:
        with _inner_functions_opened():
            function.get_concrete_function()
        model, _ = tf2onnx.convert.from_function(
            function,
            function.input_signature,
            opset=OPSET,
            custom_op_handlers={"Erfc": (_erfc, [])},
        )
    except Exception as error:
        raise ValueError(
            f"Expected layers that tf2onnx can convert. Received: "
            f"'{stage.name}', for which it says: {error}. Export in another "
            "format, such as 'saved_model'."
        ) from error
    _keep_constants(model, function.get_concrete_function())
    return model.SerializeToString()


@contextlib.contextmanager
def _inner_functions_opened():
    """Lets functions inside layers become part of the graph around them.

    Keras gives grouped convolutions to XLA in a function of their own, and
    ONNX Runtime knows no such functions.
    """
    import tensorflow as tf

    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def _keep_constants(model, concrete):
    """Stores what a function has caught by its value in its file.

    Layers may hold plain tensors, as `Normalization` does; tf2onnx makes
    further inputs of them.
    """
    from onnx import numpy_helper

    graph = model.graph
    num_given = len(concrete.inputs) - len(concrete.captured_inputs)
    caught = dict(
        zip(
            (tensor.name for tensor in concrete.inputs[num_given:]),
            concrete.captured_inputs,
            strict=True,
        )
    )
    read = _read_by(graph)
    for extra in [tensor for tensor in graph.input if tensor.name in caught]:
        graph.input.remove(extra)
        if extra.name in read:
            value = caught[extra.name].numpy()
            graph.initializer.append(numpy_helper.from_array(value, extra.name))


def _read_by(graph):
    """Names of all that is read in a graph and in those inside its nodes."""
    names = set()
    for node in graph.node:
        names.update(node.input)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                names |= _read_by(inner)
    return names


def _erfc(ctx, node, name, args):
    """erfc(x) as 1 - erf(x): GELU needs it, and ONNX has only erf."""
    node.type = "Erf"
    one = ctx.make_const(f"{node.name}/one", np.ones((), "float32"))
    output = node.output[0]
    rest = ctx.insert_new_node_on_output(
        "Sub", output, name=f"{node.name}/rest"
    )
    ctx.replace_inputs(rest, [one.output[0], output])
    return rest
