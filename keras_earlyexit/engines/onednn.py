"""Whether TensorFlow computes with oneDNN.

It does by default where the processor has certain instructions, and as
`TF_ENABLE_ONEDNN_OPTS` says. oneDNN is faster for many rows, in training most
of all; for a few rows TensorFlow's own kernels are.
"""

import functools


@functools.cache
def is_on():
    """Whether this process computes with oneDNN.

    TensorFlow has no public function that tells, so a small graph is asked
    which kernels it was given.
    """
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), tf.device("/CPU:0"):
        given = v1.placeholder(tf.float32, (None, 4, 4, 1))
        found = tf.nn.conv2d(given, tf.ones((1, 1, 1, 1)), 1, "VALID")
        about = v1.RunMetadata()
        with v1.Session(config=v1.ConfigProto(device_count={"GPU": 0})) as run:
            run.run(
                found,
                {given: [[[[1.0]] * 4] * 4]},
                options=v1.RunOptions(output_partition_graphs=True),
                run_metadata=about,
            )
    return any(
        node.op.startswith("_Mkl")
        for graph in about.partition_graphs
        for node in graph.node
    )
