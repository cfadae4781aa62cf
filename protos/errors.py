"""What goes wrong on the wire, and what each side may say of it.

    SplitError
      WireError (ValueError)   a message that cannot be right
        TooLarge               more than the limits allow
      Refused                  the peer says no; trying again will not help
        VersionMismatch        other protocol, weights, cut or policy
        NotAllowed             certificate, token, edge id
        Fenced                 a newer run of this edge exists
        DamagedData            checksum
      CloudFailed              the peer broke on this request
      CloudUnavailable         no answer now; may be tried again
        CircuitOpen            not even tried
        Overloaded             full; says when to come back
        DeadlinePassed         too late

A caller gets a status code and a fixed sentence, never an exception's text,
which could hold paths or data.
"""

import grpc

from protos import split_pb2

#: Trailing metadata that says when an overloaded server wants to be asked.
RETRY_AFTER = "retry-after-ms"
_MAX_RETRY_AFTER_MS = 3_600_000
_MAX_SENTENCE = 200


class SplitError(Exception):
    """Anything that goes wrong between the parts of a model."""


class WireError(SplitError, ValueError):
    """A message that cannot be right."""


class TooLarge(WireError):
    """More rows or bytes than the limits allow."""


class Refused(SplitError):
    """The peer says no, and trying again will not help."""


class VersionMismatch(Refused):
    """The two sides do not hold parts of the same model.

    Args:
        message: What differs, with the values of both sides.
        differences: A `protos.identity.Difference` for each thing.
    """

    def __init__(self, message, differences=()):
        super().__init__(message)
        self.differences = tuple(differences)


class NotAllowed(Refused):
    """A certificate, a token or an id is missing or wrong.

    Args:
        message: What is wrong.
        is_known: Whether the caller has shown who it is, so that what it
            lacks is the permission.
    """

    def __init__(self, message, is_known=False):
        super().__init__(message)
        self.is_known = is_known


class Fenced(Refused):
    """A newer run of this edge exists."""


class DamagedData(Refused):
    """Data does not have its checksum."""


class CloudFailed(SplitError):
    """The peer broke while it worked on this request."""


class CloudUnavailable(SplitError):
    """There is no answer now; it may be tried again."""


class CircuitOpen(CloudUnavailable):
    """Calls failed so often that none is made for now."""


class Overloaded(CloudUnavailable):
    """The peer is full.

    Args:
        message: What is full.
        retry_after_s: When to come back, or `None` where it does not say.
    """

    def __init__(self, message, retry_after_s=None):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlinePassed(CloudUnavailable):
    """The answer would come too late."""


_ANSWERS = {
    TooLarge: (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "The request has more rows or bytes than the limits allow.",
    ),
    WireError: (
        grpc.StatusCode.INVALID_ARGUMENT,
        "The request does not hold what the model takes.",
    ),
    VersionMismatch: (
        grpc.StatusCode.FAILED_PRECONDITION,
        "The request does not fit the model that is served here. Say hello "
        "again.",
    ),
    Fenced: (
        grpc.StatusCode.ABORTED,
        "A newer run of this edge has taken over.",
    ),
    DamagedData: (
        grpc.StatusCode.DATA_LOSS,
        "The data does not have its checksum.",
    ),
    Refused: (
        grpc.StatusCode.FAILED_PRECONDITION,
        "The request is refused.",
    ),
    Overloaded: (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "The worker is full. Come back later.",
    ),
    DeadlinePassed: (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "The deadline of the request has passed.",
    ),
    CloudUnavailable: (
        grpc.StatusCode.UNAVAILABLE,
        "The worker does not answer requests now.",
    ),
}
_UNKNOWN_CALLER = (
    grpc.StatusCode.UNAUTHENTICATED,
    "A valid certificate or token is needed.",
)
_KNOWN_CALLER = (
    grpc.StatusCode.PERMISSION_DENIED,
    "The caller may not do this under its certificate or token.",
)
_BROKEN = (
    grpc.StatusCode.INTERNAL,
    "The worker failed on this request. Its log says why.",
)
_BY_CODE = {
    grpc.StatusCode.INVALID_ARGUMENT: WireError,
    grpc.StatusCode.OUT_OF_RANGE: WireError,
    grpc.StatusCode.FAILED_PRECONDITION: VersionMismatch,
    grpc.StatusCode.ABORTED: Fenced,
    grpc.StatusCode.DATA_LOSS: DamagedData,
    grpc.StatusCode.UNIMPLEMENTED: Refused,
    grpc.StatusCode.UNAVAILABLE: CloudUnavailable,
    grpc.StatusCode.CANCELLED: CloudUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlinePassed,
}
_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


def status_of(error):
    """What a caller is told of an error.

    Args:
        error: Any exception.

    Returns:
        A `grpc.StatusCode` and a fixed sentence.

    Example:

    >>> status_of(DamagedData("/home/me/journal at byte 17"))[1]
    'The data does not have its checksum.'
    """
    if isinstance(error, NotAllowed):
        return _KNOWN_CALLER if error.is_known else _UNKNOWN_CALLER
    for kind in type(error).__mro__:
        if kind in _ANSWERS:
            return _ANSWERS[kind]
    return _BROKEN


def retry_after_ms(error):
    """Milliseconds that an error tells a caller to wait; 0 for none."""
    seconds = getattr(error, "retry_after_s", None)
    if seconds is None:
        return 0
    return min(max(1, round(1000 * seconds)), _MAX_RETRY_AFTER_MS)


def status_message(error):
    """The same as `status_of`, as the `Status` of a reply in a stream."""
    code, sentence = status_of(error)
    return split_pb2.Status(
        code=code.value[0],
        sentence=sentence,
        retry_after_ms=retry_after_ms(error),
    )


def from_status(status):
    """The error that the `Status` of a reply stands for.

    Args:
        status: A `split_pb2.Status` whose code is not 0.

    Returns:
        A `SplitError`.
    """
    code = _BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
    return _error(code, status.sentence, status.retry_after_ms)


def from_rpc_error(error):
    """The error that a failed call stands for.

    Args:
        error: A `grpc.RpcError` of a call that was made, of gRPC's
            synchronous or asynchronous API.

    Returns:
        A `SplitError`.
    """
    after = 0
    for key, value in error.trailing_metadata() or ():
        if key == RETRY_AFTER and value.isdecimal() and len(value) < 10:
            after = int(value)
    return _error(error.code(), error.details(), after)


def _error(code, sentence, after_ms):
    # The peer wrote it: it goes into a message on one short line.
    said = " ".join((sentence or "nothing more").split())[:_MAX_SENTENCE]
    message = f"The cloud worker's answer is {code.name}: {said}"
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        if _is_too_large(said):
            return TooLarge(message)
        after_ms = min(after_ms, _MAX_RETRY_AFTER_MS)
        return Overloaded(message, after_ms / 1000 if after_ms else None)
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return NotAllowed(message)
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return NotAllowed(message, is_known=True)
    return _BY_CODE.get(code, CloudFailed)(message)


def _is_too_large(sentence):
    # gRPC has one code for full and for too large. Where the text is of
    # neither kind, full is the safer guess: it ends in a degraded answer.
    return sentence == _ANSWERS[TooLarge][1] or "larger than max" in sentence
