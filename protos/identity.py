"""Whether two sides hold parts of the same model.

What the two have to agree on is an `Identity`: the edge makes it of its own
bundle, the cloud of each of its own, and `differences` says what does not fit
and how to mend it.
"""

import dataclasses
import hashlib
import json
import math
import re
from typing import NamedTuple

from protos import split_pb2
from protos.errors import VersionMismatch, WireError
from protos.limits import MAX_RANK, MAX_TENSORS

#: (major, minor): another major is refused, another minor works.
PROTOCOL = (1, 0)
_MAX_TEXT = 256
_HASH = re.compile("[0-9a-f]{64}")
_FIXES = {
    "protocol": "Install the same major version of keras_earlyexit on both "
    "sides.",
    "model": "Start both sides from segments of the same export.",
    "weights": "Export the model once with `cut`, and give both sides the "
    "segments of that export.",
    "policy": "Export again after changing the policy or its thresholds, and "
    "give both sides the segments of that export.",
    "first stage": "Start a cloud worker with the segment that comes right "
    "after the edge's, or with the whole model.",
    "raw input": "Have the edge worker send features, or start the cloud "
    "worker with --allow-raw-input.",
    "generation": "Say hello again: the cloud worker serves other "
    "generations now.",
    "features": "Export the model once with `cut`, and give both sides the "
    "segments of that export.",
}
_OTHER_FIX = "Give both sides the segments of the same export."


class Feature(NamedTuple):
    """Name, shape and type of a tensor that crosses the cut.

    The batch comes first and is `None`, as is any other open size.
    """

    name: str
    shape: tuple
    dtype: str


class Difference(NamedTuple):
    """A thing that is not the same on both sides, and how to mend it."""

    what: str
    edge: str
    cloud: str
    fix: str


@dataclasses.dataclass(frozen=True)
class Identity:
    """What two sides have to agree on to work together.

    Args:
        model_name: Name of the model.
        weights_sha256: SHA-256 over the weights of the whole model.
        policy_sha256: SHA-256 over what decides who leaves where.
        first_stage: The stage that the features enter; 0 for raw input.
        feature: A `Feature` for each tensor that crosses.
    """

    model_name: str
    weights_sha256: str
    policy_sha256: str
    first_stage: int
    feature: tuple

    @classmethod
    def of(cls, manifest, first_stage=None):
        """What the next segment has to be, or what a stage here takes.

        Args:
            manifest: The `Manifest` of a bundle.
            first_stage: A stage of that bundle, for what that stage takes;
                `None` for what comes after its last one.

        Returns:
            An `Identity`.

        Raises:
            ValueError: If the bundle does not have that stage, or if nothing
                comes after it.
        """
        stages = {stage.index: stage for stage in manifest.stages}
        after = max(stages) + 1
        if first_stage is None:
            first_stage = after
        if first_stage in stages:
            specs = stages[first_stage].inputs
        elif first_stage == after < len(manifest.exit_names):
            outputs = {spec.name: spec for spec in stages[after - 1].outputs}
            specs = [outputs[k] for k in ("feature", "carry") if k in outputs]
        else:
            raise ValueError(
                "Expected a stage that the bundle has, or the one after its "
                f"last. Received: first_stage={first_stage}, a bundle with "
                f"the stages {sorted(stages)} of {len(manifest.exit_names)}. "
                "Take a segment that was exported with `cut`."
            )
        return cls(
            model_name=manifest.model_name,
            weights_sha256=manifest.weights_sha256,
            policy_sha256=_policy_sha256(manifest),
            first_stage=first_stage,
            feature=tuple(
                Feature(spec.name, tuple(spec.shape), spec.dtype)
                for spec in specs
            ),
        )

    @classmethod
    def of_hello(cls, hello):
        """What a `HelloRequest` from anybody says.

        Args:
            hello: A `split_pb2.HelloRequest`.

        Returns:
            An `Identity`.

        Raises:
            WireError: If it cannot be right.
        """
        if len(hello.features) > MAX_TENSORS:
            raise WireError(
                f"Expected at most {MAX_TENSORS} features in a hello. "
                f"Received: {len(hello.features)}. Update the edge worker."
            )
        hashes = (hello.weights_sha256, hello.policy_sha256)
        texts = [hello.model_name, *(x.name for x in hello.features)]
        texts += [spec.dtype for spec in hello.features]
        ranks = [len(spec.shape) for spec in hello.features]
        if (
            not all(map(_HASH.fullmatch, hashes))
            or max(map(len, texts)) > _MAX_TEXT
            or max(ranks, default=0) > MAX_RANK
        ):
            raise WireError(
                "Expected two SHA-256 in hexadecimal, names of at most "
                f"{_MAX_TEXT} characters and shapes of at most {MAX_RANK} "
                "sizes. Received: a hello with others. Update the edge worker."
            )
        return cls(
            model_name=hello.model_name,
            weights_sha256=hello.weights_sha256,
            policy_sha256=hello.policy_sha256,
            first_stage=hello.first_stage,
            feature=tuple(
                Feature(x.name, tuple(n or None for n in x.shape), x.dtype)
                for x in hello.features
            ),
        )

    def hello(self, **fields):
        """The `HelloRequest` that says this.

        Args:
            **fields: Its other fields, such as `edge_id`.

        Returns:
            A `split_pb2.HelloRequest`.
        """
        return split_pb2.HelloRequest(
            protocol_major=PROTOCOL[0],
            protocol_minor=PROTOCOL[1],
            model_name=self.model_name,
            weights_sha256=self.weights_sha256,
            policy_sha256=self.policy_sha256,
            first_stage=self.first_stage,
            features=[
                split_pb2.TensorSpec(
                    name=x.name,
                    shape=[size or 0 for size in x.shape],
                    dtype=x.dtype,
                )
                for x in self.feature
            ],
            **fields,
        )

    @property
    def generation(self):
        """The name by which requests ask for this: the same everywhere."""
        return (
            f"{self.model_name}@{self.weights_sha256[:12]}."
            f"{self.policy_sha256[:8]}.{self.first_stage}"
        )


def differences(edge, cloud):
    """What two sides do not agree on.

    Args:
        edge: The `Identity` that the edge needs.
        cloud: The `Identity` of what is served.

    Returns:
        A tuple of `Difference`, empty if they fit.
    """
    pairs = (
        ("model", edge.model_name, cloud.model_name),
        ("weights", edge.weights_sha256, cloud.weights_sha256),
        ("policy", edge.policy_sha256, cloud.policy_sha256),
        ("first stage", edge.first_stage, cloud.first_stage),
        ("features", _shown(edge.feature), _shown(cloud.feature)),
    )
    return tuple(
        difference(what, ours, theirs)
        for what, ours, theirs in pairs
        if ours != theirs
    )


def protocol_differences(edge, cloud=PROTOCOL):
    """What two versions of the protocol do not agree on.

    Args:
        edge: Major and minor version of the edge.
        cloud: The same of the cloud.

    Returns:
        A tuple with one `Difference`, empty if the major versions agree.
    """
    if edge[0] == cloud[0]:
        return ()
    versions = ("{}.{}".format(*edge), "{}.{}".format(*cloud))
    return (difference("protocol", *versions),)


def difference(what, edge, cloud):
    """A `Difference` with the fix that belongs to it."""
    fix = _FIXES.get(what, _OTHER_FIX)
    return Difference(what, str(edge), str(cloud), fix)


def mismatch(found):
    """The error that says all differences.

    Args:
        found: `Difference`s, or the `split_pb2.Difference`s of a reply.

    Returns:
        A `VersionMismatch`; its message has the values of both sides.

    Example:

    >>> print(mismatch([difference("first stage", 1, 2)]))
    Expected a cloud worker with a part of the same model. Received: a \
difference in first stage (edge: 1, cloud: 2). Start a cloud worker with the \
segment that comes right after the edge's, or with the whole model.
    """
    found = tuple(
        difference(*(str(x)[:_MAX_TEXT] for x in (d.what, d.edge, d.cloud)))
        for d in found
    )
    values = "; ".join(
        f"{d.what} (edge: {d.edge}, cloud: {d.cloud})" for d in found
    )
    fixes = " ".join(dict.fromkeys(d.fix for d in found))
    return VersionMismatch(
        "Expected a cloud worker with a part of the same model. Received: "
        f"a difference in {values or 'nothing that was named'}. "
        f"{fixes or _OTHER_FIX}",
        found,
    )


def _policy_sha256(manifest):
    content = {
        "policy": manifest.policy,
        "thresholds": [
            value if math.isfinite(value) else str(value)
            for value in map(float, manifest.thresholds)
        ],
        "exit_names": list(manifest.exit_names),
        "relative_costs": [float(x) for x in manifest.relative_costs],
    }
    text = json.dumps(
        content, sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _shown(features):
    return ", ".join(f"{x.name} {x.shape} {x.dtype}" for x in features)
