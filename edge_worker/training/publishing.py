"""Writes a new generation, on both sides of training."""

from keras_earlyexit.exporting import halves
from protos import split_pb2
from protos.errors import Refused

#: How long the cloud worker may take to write its half.
_SECONDS = 300.0


def publish(model, segment, sender, path, format):
    """Has the cloud worker write its half, and then writes this one.

    Args:
        model: The `EarlyExitModel` that the segment shares its weights with,
            or `None`.
        segment: The edge's `SegmentModel`.
        sender: The `Sender`.
        path, format: As in `EdgeTrainer.publish`.

    Returns:
        What both halves call their weights.

    Raises:
        ValueError: If there is no model.
        SplitError: If the cloud worker does not write its half.
    """
    if model is None:
        raise ValueError(
            "Expected a trainer of an EarlyExitModel, to write a bundle of. "
            f"Received: one of '{segment.name}'. Merge all segments with "
            "`ee.merge`, and export that."
        )
    request = split_pb2.PublishRequest(
        generation=sender.generation, epoch=sender.run
    )
    try:
        reply = sender.ask(
            "Publish", request, split_pb2.PublishReply, lambda _: _SECONDS
        )
    except Refused as error:
        raise Refused(
            "Expected a cloud worker that writes its half. Received: one that "
            f"refuses ({error}). Start it with --publish."
        ) from error
    origin = segment.origin
    model.set_policy(segment.policy, given=origin.has_given_policy)
    halves.export_segment(
        model,
        path,
        cut=origin.cuts,
        segment=segment.position,
        weights_sha256=reply.weights_sha256,
        format=format,
    )
    return reply.weights_sha256
