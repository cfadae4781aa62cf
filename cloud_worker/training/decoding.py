"""Batches to learn from, out of what anybody may have sent."""

import math
from typing import NamedTuple

import numpy as np

from protos import training
from protos.errors import WireError
from protos.identity import Feature
from protos.tensors import decode, decode_all


class Batch(NamedTuple):
    """What is learned from.

    Args:
        arrays: Tuple of features.
        labels: Array of labels.
        weight: Array (batch,) or `None`.
    """

    arrays: tuple
    labels: np.ndarray
    weight: np.ndarray | None


def read(request, agreement, limits):
    """The batch of a request.

    Args:
        request: A `split_pb2.TrainRequest`.
        agreement: What is trained, as `SegmentModel.agreement` says it.
        limits: `Limits`.

    Returns:
        A `Batch`.

    Raises:
        DamagedData: If it is not what the edge wrote down.
        WireError: If it cannot be right.
    """
    training.check(request)
    specs = [training.spec_of(agreement["feature"])]
    arrays = decode_all(request.tensors, specs, limits)
    rows = len(arrays[0])
    spec = training.spec_of(agreement["labels"])
    labels = decode(request.labels, spec, rows)
    _check_range(labels, agreement["head"])
    weight = None
    if request.HasField("sample_weight"):
        spec = Feature("sample_weight", (None,), "float32")
        weight = decode(request.sample_weight, spec, rows)
        if weight.min() < 0:
            raise _wrong("sample_weight", f"{weight.min()}", "0 or more")
    for name, array in (("labels", labels), ("sample_weight", weight)):
        if array is not None and len(array) != rows:
            raise _wrong(name, f"{len(array)} rows", f"{rows} rows")
    return Batch(arrays, labels, weight)


def _check_range(labels, head):
    low, high = labels.min(), labels.max()
    top = {
        "classification": head["units"] - 1,
        "multilabel": 1,
        "regression": math.inf,
    }[head["task"]]
    bottom = -math.inf if head["task"] == "regression" else 0
    if not bottom <= low <= high <= top:
        raise _wrong("labels", f"{low} to {high}", f"{bottom} to {top}")


def _wrong(name, received, expected):
    return WireError(
        f"Expected '{name}' of {expected}. Received: {received}. Both sides "
        "need parts of the same model."
    )
