"""What is told of an answer on the wire, and of ourselves."""

import time
from importlib import metadata

from protos import split_pb2
from protos.identity import PROTOCOL
from protos.tensors import encode


def infer_reply(request, answer):
    """The message of an `Answer`."""
    reply = split_pb2.InferReply(
        request_id=request.request_id,
        degraded=answer.degraded.tolist(),
        queue_us=_microseconds(answer.queue_s),
        compute_us=_microseconds(answer.compute_s),
    )
    # Proven to be finite already; and `final` has no score.
    encode(answer.predictions, finite=False, message=reply.predictions)
    encode(answer.score, finite=False, message=reply.score)
    encode(answer.exit_index.astype("int32"), message=reply.exit_index)
    return reply


def hello_reply(entrance, found=()):
    """The message for an edge that may enter, or that may not.

    Args:
        entrance: An `Entrance`, or `None`.
        found: The `Difference`s, if there is none.
    """
    reply = split_pb2.HelloReply(
        accepted=entrance is not None,
        differences=[
            split_pb2.Difference(what=x.what, edge=x.edge, cloud=x.cloud)
            for x in found
        ],
        protocol_major=PROTOCOL[0],
        protocol_minor=PROTOCOL[1],
        library_version=_version(),
        clock=time.time(),
    )
    if entrance is not None:
        reply.generation = entrance.identity.generation
        reply.max_rows = entrance.limits.max_rows
        reply.max_message_bytes = entrance.limits.max_message_bytes
    return reply


def _version():
    try:
        return metadata.version("keras-earlyexit")
    except metadata.PackageNotFoundError:
        return ""


def _microseconds(seconds):
    return min(max(0, round(1e6 * seconds)), (1 << 32) - 1)
