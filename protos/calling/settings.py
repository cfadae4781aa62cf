"""How the calling side behaves."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class LinkOptions:
    """How a link behaves.

    Args:
        deadline_s: Seconds that a call may take, where it does not say.
        codec: Name of the form in which features cross.
        edge_id: What this side calls itself; empty where its certificate
            does.
        max_rows: Samples in one message, where the peer allows as many.
        max_in_flight: Requests without a reply at the same time.
        max_attempts: How often one call is tried.
        hello_timeout_s: Seconds that a hello may take to a peer that is near.
        probe_every_s: Seconds between two probes for a peer that is gone.
        max_message_bytes: Largest message, both ways.
    """

    deadline_s: float = 2.0
    codec: str = "float32"
    edge_id: str = ""
    max_rows: int = 256
    max_in_flight: int = 8
    max_attempts: int = 4
    hello_timeout_s: float = 1.0
    probe_every_s: float = 0.5
    max_message_bytes: int = 4 << 20
