"""What both sides of training say about a batch and about their agreement."""

import hashlib
import json
import struct
import zlib

from protos.errors import DamagedData
from protos.identity import Feature, Identity

#: Metadata of the method `Train`: who calls, where no certificate says so.
EDGE_ID = "edge-id"
_NUMBER = struct.Struct("<Q")


def checksum(request):
    """CRC-32 over what is learned from, and over its place in the sequence.

    The run of the edge, `epoch`, is left out: a batch that was written down by
    an earlier run is sent by a later one.

    Args:
        request: A `split_pb2.TrainRequest`.

    Returns:
        An integer of 32 bits.

    Example:

    >>> from protos import split_pb2
    >>> checksum(split_pb2.TrainRequest(sequence=1)) == checksum(
    ...     split_pb2.TrainRequest(sequence=2)
    ... )
    False
    """
    crc = zlib.crc32(_NUMBER.pack(request.sequence))
    crc = _add(crc, request.generation.encode())
    crc = _add(crc, bytes([request.ends_pass, len(request.tensors) % 256]))
    for tensor in (*request.tensors, request.labels, request.sample_weight):
        crc = _add(crc, bytes([tensor.dtype % 256, tensor.compression % 256]))
        crc = _add(crc, struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape))
        crc = _add(crc, tensor.data)
        for numbers in (tensor.scale, tensor.offset):
            crc = _add(crc, struct.pack(f"<{len(numbers)}f", *numbers))
    return crc


def check(request):
    """Refuses a request that is not what its edge wrote down.

    Args:
        request: A `split_pb2.TrainRequest`.

    Raises:
        DamagedData: If its checksum is another.
    """
    if checksum(request) != request.crc32:
        raise DamagedData(
            f"Expected the checksum {request.crc32:#010x} of batch "
            f"{request.sequence}. Received: {checksum(request):#010x}. Look "
            "at the edge's disk and memory."
        )


def digest(value):
    """SHA-256 in hexadecimal over what JSON can hold."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def identity_of(agreement):
    """What two sides have to agree on to train, for the hello.

    Args:
        agreement: A dict that JSON can hold, with at least `origin` (`name`,
            `weights_sha256`, `policy`), `first_stage`, and `feature` and
            `labels` (name, shape, type).

    Returns:
        An `Identity`.
    """
    origin = agreement["origin"]
    return Identity(
        model_name=origin["name"],
        weights_sha256=origin["weights_sha256"],
        policy_sha256=digest(origin["policy"]),
        first_stage=agreement["first_stage"],
        feature=(spec_of(agreement["feature"]),),
    )


def spec_of(described):
    """The `Feature` of a list of name, shape and type."""
    name, shape, dtype = described
    return Feature(name, tuple(shape), dtype)


def _add(crc, data):
    # With its length, or bytes could move from one field to the next.
    return zlib.crc32(data, zlib.crc32(_NUMBER.pack(len(data)), crc))
