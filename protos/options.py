"""Options of channels and servers, each with its reason."""

import grpc

# A peer that stands still is found after at most the sum of the two. gRPC's
# own keepalive timeout never fires; the ping timeout does.
_PING_EVERY_MS = 3_000
PING_TIMEOUT_S = 5.0


def channel_options(max_message_bytes, ping_timeout_s=PING_TIMEOUT_S):
    """Options of a channel to a cloud worker.

    Args:
        max_message_bytes: Largest message, both ways.
        ping_timeout_s: Seconds without an answer after which a connection is
            taken for dead.

    Returns:
        A list of pairs, as `grpc.insecure_channel` takes it.
    """
    return [
        *_message_sizes(max_message_bytes),
        *_pings(_PING_EVERY_MS, ping_timeout_s),
        # An idle edge sends nothing: it may hang on a metered link.
        ("grpc.keepalive_permit_without_calls", 0),
        # A link that stands still holds back pings with everything else.
        ("grpc.http2.max_pings_without_data", 0),
        # Back within two seconds of the cloud's return.
        ("grpc.initial_reconnect_backoff_ms", 100),
        # How long an attempt to connect may take, for all its name says.
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # One retry loop, ours: it knows the deadline and the budget.
        ("grpc.enable_retries", 0),
        # Features go where they were told to go, whatever a variable of the
        # environment says.
        ("grpc.enable_http_proxy", 0),
        # A closed channel is closed, and another one has its own connection.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def server_options(
    max_message_bytes, max_concurrent_streams, ping_timeout_s=PING_TIMEOUT_S
):
    """Options of a cloud worker's server.

    Args:
        max_message_bytes: Largest message, both ways.
        max_concurrent_streams: Calls at the same time on one connection.
        ping_timeout_s: As in `channel_options`.

    Returns:
        A list of pairs, as `grpc.server` takes it.
    """
    return [
        *_message_sizes(max_message_bytes),
        # Edges that vanished are found too, but nobody waits for that.
        *_pings(4 * _PING_EVERY_MS, ping_timeout_s),
        ("grpc.max_concurrent_streams", max_concurrent_streams),
        # Below what edges send, or they would be turned away for pinging.
        ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
        ("grpc.http2.max_ping_strikes", 3),
        # A second worker on the same port is an error and no lottery.
        ("grpc.so_reuseport", 0),
    ]


def open_channel(
    target, credentials, max_message_bytes, ping_timeout_s=PING_TIMEOUT_S
):
    """A channel to a cloud worker. Connects when first used.

    Args:
        target: `"host:port"`.
        credentials: `grpc.ChannelCredentials`; `None` for plain text, which
            `ClientSecurity` gives on loopback addresses only.
        max_message_bytes: Largest message, both ways.
        ping_timeout_s: As in `channel_options`.

    Returns:
        A `grpc.Channel`.
    """
    options = channel_options(max_message_bytes, ping_timeout_s)
    if credentials is None:
        return grpc.insecure_channel(target, options)
    return grpc.secure_channel(target, credentials, options)


def _message_sizes(max_message_bytes):
    return [
        # gRPC's own limit is 4 MB, and none for what is sent.
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
    ]


def _pings(every_ms, timeout_s):
    timeout_ms = int(1000 * timeout_s)
    return [
        ("grpc.keepalive_time_ms", every_ms),
        ("grpc.keepalive_timeout_ms", timeout_ms),
        ("grpc.http2.ping_timeout_ms", timeout_ms),
    ]
