"""TensorFlow functions compiled for good, and called at least cost."""


def compiled(function, signature):
    """Compiles a function of tensors.

    A compiled function checks and sorts its arguments at every call, for a
    tenth of a millisecond and more. Here an operation calls it, which takes
    the tensors as they are.

    Args:
        function: Takes tensors, and returns a tuple of tensors.
        signature: A `tf.TensorSpec` for each tensor that it takes.

    Returns:
        A callable of these tensors that returns a list of tensors. Variables
        are read at every call.
    """
    import tensorflow as tf

    concrete = tf.function(
        function, input_signature=signature, autograph=False
    ).get_concrete_function()
    variables = concrete.captured_inputs
    types = [tensor.dtype for tensor in concrete.outputs]

    def call(*tensors):
        return tf.raw_ops.StatefulPartitionedCall(
            args=[*tensors, *variables], Tout=types, f=concrete
        )

    return call
