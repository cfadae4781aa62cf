"""What an edge worker can be told: one frozen object, checked once."""

import dataclasses
import math
import pathlib
import re
import socket

from keras_earlyexit.bundle.specs import BundleError
from protos.codecs import Codec
from protos.security import ClientSecurity

FEATURES, INPUT, AUTO = "features", "input", "auto"
OFFLOADS = (FEATURES, INPUT, AUTO)
_MAX_DEADLINE_S = 3600.0


@dataclasses.dataclass(frozen=True)
class EdgeConfig:
    """The settings of an edge worker.

    Args:
        target: `"host:port"` of the cloud worker.
        deadline: Seconds that a batch may take.
        insecure: `True` for plain text, to loopback addresses only.
        ca: PEM file of the authority of the cloud worker's certificate.
        cert: PEM file of this edge's certificate.
        key: PEM file of its key.
        token: Token to send with every call.
        edge_id: What this edge calls itself; `None` takes the certificate's
            name, or the host's.
        codec: Form in which features cross, see `protos.codecs.Codec`.
        offload: `"features"`, `"input"`, or `"auto"` for what is smaller.
        allow_raw_input: Whether inputs may leave this machine.
        offload_rows_per_s: The most rows that are sent on in a second.
        max_offload_share: The largest share of rows that is sent on.
        max_in_flight: Batches of all callers that wait for the cloud worker
            at the same time.

    Raises:
        ValueError: If one of them cannot be right.
    """

    target: str
    deadline: float = 2.0
    insecure: bool = False
    ca: str | pathlib.Path | None = None
    cert: str | pathlib.Path | None = None
    key: str | pathlib.Path | None = None
    token: str | None = dataclasses.field(default=None, repr=False)
    edge_id: str | None = None
    codec: str = "float32"
    offload: str = FEATURES
    allow_raw_input: bool = False
    offload_rows_per_s: float | None = None
    max_offload_share: float | None = None
    max_in_flight: int = 16

    def __post_init__(self):
        Codec.parse(self.codec)
        self._check(
            "deadline",
            _is_number(self.deadline) and 0 < self.deadline <= _MAX_DEADLINE_S,
            f"seconds, more than 0 and at most {_MAX_DEADLINE_S:g}",
        )
        self._check("offload", self.offload in OFFLOADS, " or ".join(OFFLOADS))
        rate, share = self.offload_rows_per_s, self.max_offload_share
        self._check(
            "offload_rows_per_s",
            rate is None or _is_number(rate) and rate > 0,
            "None or a number of rows above 0",
        )
        self._check(
            "max_offload_share",
            share is None or _is_number(share) and 0 < share <= 1,
            "None or a share above 0 and at most 1",
        )
        self._check(
            "max_in_flight",
            type(self.max_in_flight) is int and 1 <= self.max_in_flight <= 256,
            "an integer from 1 to 256",
        )
        if self.offload == INPUT and not self.allow_raw_input:
            raise ValueError(
                "Expected allow_raw_input=True with offload='input', which "
                "sends inputs to another machine. Received: "
                f"allow_raw_input={self.allow_raw_input!r} (of type "
                f"{type(self.allow_raw_input).__name__}). Allow it, or choose "
                "offload='features'."
            )

    def _check(self, name, is_right, expected):
        value = getattr(self, name)
        if not is_right:
            raise ValueError(
                f"Expected `{name}` to be {expected}. Received: "
                f"{name}={value!r} (of type {type(value).__name__})."
            )

    @property
    def security(self):
        """The `ClientSecurity` of these settings."""
        return ClientSecurity(
            ca=self.ca,
            cert=self.cert,
            key=self.key,
            token=self.token,
            insecure=self.insecure,
        )

    @property
    def link_options(self):
        """What a `Link` is told of these settings, a dict."""
        edge_id = self.edge_id
        if edge_id is None:
            edge_id = "" if self.cert is not None else _host_name()
        return {
            "deadline_s": self.deadline,
            "codec": self.codec,
            "edge_id": edge_id,
            "max_in_flight": self.max_in_flight,
        }

    def check_bundle(self, manifest):
        """Refuses a bundle that these settings cannot send on from.

        Args:
            manifest: A `Manifest`.

        Raises:
            BundleError: If there is nothing to send on.
            ValueError: If inputs would leave this machine unasked.
        """
        stages = [stage.index for stage in manifest.stages]
        if stages[0] != 0 or stages[-1] == len(manifest.exit_names) - 1:
            raise BundleError(
                "Expected the first segment of a model that was cut. "
                f"Received: a bundle with the stages {stages} of "
                f"{len(manifest.exit_names)}. Export the model with `cut`, "
                "and take its segment_0."
            )
        if manifest.raw_cut and not self.allow_raw_input:
            raise ValueError(
                "Expected a cut behind a layer with weights. Received: one "
                "before, so that its features are the input in another form. "
                "Cut at a later exit, or pass allow_raw_input=True."
            )
        strings = [
            spec.name
            for spec in manifest.stages[0].inputs
            if spec.dtype == "string"
        ]
        if strings and self.offload != FEATURES:
            raise ValueError(
                "Expected inputs of numbers to send them on. Received: "
                f"{strings}, which are text. Choose offload='features'."
            )


def _is_number(value):
    return type(value) in (int, float) and math.isfinite(value)


def _host_name():
    name = re.sub("[^A-Za-z0-9._-]", "-", socket.gethostname())[:64]
    return name.lstrip("._-") or "edge"
