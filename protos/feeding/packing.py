"""A batch to learn from as a record of the journal."""

import numpy as np

from protos import split_pb2, training
from protos.tensors import encode

_ROUND = 3


def pack(
    generation,
    sequence,
    feature,
    labels,
    weight=None,
    *,
    codec="float32",
    seed=0,
    pass_number=0,
    ends_pass=False,
):
    """Makes the record of a batch: the same bytes whenever it is made again.

    Args:
        generation: What is trained, as `Sender.generation` says it.
        sequence: Number of the batch.
        feature: Array (batch, ...).
        labels: Array (batch, ...).
        weight: Array (batch,) or `None`.
        codec: A `Codec` or its name; 8-bit ones round at random.
        seed: Integer that roundings follow from.
        pass_number: Which pass over the edge's data this is.
        ends_pass: Whether that ends here.

    Returns:
        Bytes of a `TrainRequest` without `epoch`.

    Raises:
        ValueError: If a feature is not finite.
    """
    rng = np.random.default_rng((seed, pass_number, _ROUND, sequence))
    request = split_pb2.TrainRequest(
        generation=generation,
        sequence=sequence,
        tensors=[encode(feature, codec, rng)],
        labels=encode(labels),
        ends_pass=ends_pass,
        pass_number=pass_number,
    )
    if weight is not None:
        # Often only two different values.
        request.sample_weight.CopyFrom(encode(weight, "float32+zstd"))
    request.crc32 = training.checksum(request)
    return request.SerializeToString(deterministic=True)
