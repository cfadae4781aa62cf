"""The weights of a segment as one vector that may cross, and what proves it.

Only weights cross: neither gradients, nor the optimizer's state, nor the
random state of layers.
"""

import math
import zlib

import numpy as np

from protos import split_pb2, training
from protos.errors import DamagedData, WireError
from protos.identity import Feature
from protos.tensors import decode, encode

#: Largest vector: what a message and three copies of it may take.
MAX_NUMBERS = 1 << 28
#: Weights beyond this are none: training has diverged.
MAX_MAGNITUDE = 1e6


def form_sha256(shapes):
    """What both sides have to agree on: shapes and order of the weights.

    Args:
        shapes: The shape of each weight that is averaged.

    Returns:
        SHA-256 in hexadecimal.
    """
    return training.digest([list(map(int, shape)) for shape in shapes])


def num_numbers(shapes):
    """How many numbers weights of these shapes have."""
    return sum(math.prod(shape) for shape in shapes)


def join(arrays):
    """All weights behind each other, as float32."""
    return np.concatenate([np.ravel(x).astype("float32") for x in arrays])


def part(vector, shapes):
    """The arrays that `join` made a vector of."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    return [
        piece.reshape(shape)
        for piece, shape in zip(
            np.split(vector, ends[:-1]), shapes, strict=True
        )
    ]


def offer(generation, epoch, number, samples, vector):
    """The request that offers a vector; `None` offers nothing."""
    request = split_pb2.AverageRequest(
        generation=generation, epoch=epoch, number=number, samples=samples
    )
    if vector is not None:
        request.weights.CopyFrom(encode(vector))
    request.crc32 = _checksum(request.weights, number, samples)
    return request


def reply(round_, vector, edges, samples):
    """The reply that hands out a vector; `None` for none."""
    message = split_pb2.AverageReply(round=round_, edges=edges, samples=samples)
    if vector is not None:
        message.weights.CopyFrom(encode(vector))
    message.crc32 = _checksum(message.weights, round_, samples)
    return message


def read(message, number, length):
    """The vector of a request or a reply from anybody.

    Args:
        message: A `split_pb2.AverageRequest` or `AverageReply`.
        number: Its `number` or `round`.
        length: How many numbers it has to have.

    Returns:
        An array (length,) of float32, or `None` if it holds none.

    Raises:
        DamagedData: If its checksum is another.
        WireError: If it cannot be right.
    """
    if _checksum(message.weights, number, message.samples) != message.crc32:
        raise DamagedData(
            "Expected weights with their checksum. Received: others. Look at "
            "the memory of both machines."
        )
    if not message.HasField("weights"):
        return None
    spec = Feature("weights", (None,), "float32")
    if list(message.weights.shape) != [length]:
        raise WireError(
            f"Expected {length} weights in one vector. Received: the shape "
            f"{list(message.weights.shape)[:8]}. Both sides need parts of the "
            "same model."
        )
    vector = decode(message.weights, spec, length)
    peak = float(np.abs(vector).max())
    if peak > MAX_MAGNITUDE:
        raise WireError(
            f"Expected weights of at most {MAX_MAGNITUDE:g} in magnitude. "
            f"Received: {peak:g}. The edge's training has diverged: lower "
            "its learning rate."
        )
    return vector


def _checksum(tensor, number, samples):
    return zlib.crc32(
        np.array([number, samples], "<u8").tobytes(), zlib.crc32(tensor.data)
    )
