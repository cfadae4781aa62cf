"""What played edges send: recorded once, and sent again and again."""

import dataclasses

import numpy as np

from keras_earlyexit.bundle.specs import BundleError
from protos import split_pb2
from protos.identity import Identity
from protos.tensors import encode

_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Recording:
    """Requests of a bundle's edge, without what differs from call to call.

    Args:
        identity: The `Identity` of what answers them.
        contents: List of bytes, an `InferRequest` with its tensors each.
        rows: Samples in each.
        staying: Share of the samples recorded from that did not leave.
    """

    identity: Identity
    contents: list
    rows: int
    staying: float

    def content(self, number, request_id, deadline_s):
        """Bytes of a call's request; its parts stand behind each other."""
        head = split_pb2.InferRequest(
            request_id=request_id,
            generation=self.identity.generation,
            timeout_ms=max(1, int(1000 * deadline_s)),
        )
        recorded = self.contents[number % len(self.contents)]
        return head.SerializeToString() + recorded


def record(bundle, x=None, rows=1, codec="float32", samples=256, seed=0):
    """Records what an edge would send.

    Args:
        bundle: The `Bundle` of the first segment.
        x: Its inputs; those that leave are left out. `None` for random ones,
            of which nobody leaves.
        rows: Samples in a request.
        codec: Form in which features cross.
        samples: Random inputs.
        seed: What they follow from.

    Returns:
        A `Recording`.

    Raises:
        BundleError: If no sample stays.
    """
    thresholds = None
    if x is None:
        (x,) = (_random(spec, samples, seed) for spec in _inputs(bundle))
        thresholds = np.full(len(bundle.exit_names) - 1, np.inf)
    found = [
        routed
        for start in range(0, len(x), _BATCH)
        for routed in [bundle.route(x[start : start + _BATCH], thresholds)]
        if routed.feature is not None
    ]
    if not found:
        raise BundleError(
            "Expected samples that do not leave on the edge. Received: "
            f"{len(x)} samples that all do. Pass other data or a higher "
            "--threshold."
        )
    features = [np.concatenate([part.feature for part in found])]
    if found[0].carry is not None:
        features.append(np.concatenate([part.carry for part in found]))
    number = len(features[0])
    # Whole requests, the first samples again in the last one.
    places = np.arange(-(-number // rows) * rows).reshape(-1, rows) % number
    return Recording(
        Identity.of(bundle.manifest),
        [
            split_pb2.InferRequest(
                tensors=[encode(array[some], codec) for array in features]
            ).SerializeToString()
            for some in places
        ],
        rows,
        number / len(x),
    )


def _inputs(bundle):
    specs = bundle.manifest.stages[0].inputs
    if len(specs) > 1 or specs[0].dtype == "string":
        raise BundleError(
            "Expected a model with one input of numbers to draw random ones "
            f"for. Received: the inputs {[spec.name for spec in specs]}. Pass "
            "--data."
        )
    return specs


def _random(spec, samples, seed):
    shape = (samples, *(size or 1 for size in spec.shape[1:]))
    rng = np.random.default_rng(seed)
    if np.dtype(spec.dtype).kind == "f":
        return rng.normal(size=shape).astype(spec.dtype)
    return rng.integers(0, 2, shape).astype(spec.dtype)
