"""What a worker that trains consists of, by the options of its command."""

from keras_earlyexit.cli.shared import CommandError, ExitCode
from keras_earlyexit.storage.urls import is_url


def crew_of(workers, index, patience_s, listen, forward):
    """The `Crew` of several machines, or `None` for one alone."""
    if workers is None:
        return None
    from protos.addresses import split_address

    addresses = [part.strip() for part in workers.split(",")]
    ports = [split_address(x)[1] for x in addresses]
    if len(set(addresses)) < 2 or 0 in ports or index >= len(addresses):
        raise CommandError(
            "Expected --workers with the addresses of at least two machines, "
            "each with a port, and --worker-index as a place among them. "
            f"Received: {workers!r} and {index}.",
            ExitCode.USAGE,
        )
    if split_address(listen)[1] == 0 or forward is not None:
        raise CommandError(
            "Expected --workers for the last segment, with a port in --listen "
            "at which edges find it after a new start. Received: --listen "
            f"{listen}, --forward {forward or 'not given'}.",
            ExitCode.USAGE,
        )
    import keras

    if keras.backend.backend() != "tensorflow":
        raise CommandError(
            "Expected the TensorFlow backend for --workers. Received: "
            f"{keras.backend.backend()}. Set KERAS_BACKEND=tensorflow.",
            ExitCode.USAGE,
        )
    from cloud_worker.training.replicas import Crew

    return Crew(addresses, index, patience_s)


def check_state(state, forward, average_quorum):
    """Refuses a URL where more than the ledger has to be kept."""
    if not is_url(state):
        return
    for option, value in (
        ("--forward", forward),
        ("--average-quorum", average_quorum),
    ):
        if value is not None:
            raise CommandError(
                f"Expected a folder as --state with {option}, which keeps "
                f"more there than the ledger. Received: {state}. Choose a "
                "folder on a disk that outlives the machine.",
                ExitCode.USAGE,
            )


def segments_of(model, cuts, base, position):
    """All segments of a model, and which one to train.

    Of a file of one segment, that one; those before it are `None`.
    """
    import keras_earlyexit as ee

    if isinstance(model, ee.SegmentModel):
        return [*[None] * model.position, model], model.position
    parts = ee.split(model, tuple(cuts), base)
    position = len(parts) - 1 if position is None else position
    if position >= len(parts):
        raise CommandError(
            f"Expected --segment from 1 to {len(parts) - 1}. Received: "
            f"{position}. Give --cut once for each cut.",
            ExitCode.USAGE,
        )
    return parts, position


def _check_whole(model, option):
    if model is None:
        raise CommandError(
            f"Expected the .keras file of a whole model for {option}. "
            "Received: that of one segment. Merge all segments first.",
            ExitCode.USAGE,
        )


def publisher_of(model, segment, path, format):
    _check_whole(None if model is segment else model, "--publish")
    if not (segment.is_last and segment.position == 1):
        raise CommandError(
            "Expected --publish on the later of two machines. Received: "
            f"segment {segment.position} of {len(segment.origin.cuts) + 1}. "
            "Merge all segments, and export the whole.",
            ExitCode.USAGE,
        )
    from cloud_worker.training.publishing import Publisher

    return Publisher(model, segment, path, format)


def outlet_of(segment, target, folder, tls, token_file, insecure, **options):
    """The `Outlet` to a further worker; `None` behind the last segment."""
    if segment.is_last != (target is None):
        raise CommandError(
            "Expected --forward for every segment but the last. Received: "
            f"segment {segment.position} of {len(segment.origin.cuts) + 1}, "
            f"and --forward {target or 'not given'}. Look at --segment and "
            "--cut.",
            ExitCode.USAGE,
        )
    if target is None:
        return None
    from cloud_worker.training.outlet import Outlet
    from protos.security import ClientSecurity, read_tokens

    token = None if token_file is None else read_tokens(token_file)[0]
    security = ClientSecurity(*tls, token=token, insecure=insecure)
    return Outlet(segment, target, folder, security, **options)


def averaging_of(segment, state, quorum, wait_s):
    """The `Averaging` of the segment in front of the one that is trained."""
    _check_whole(segment, "--average-quorum")
    from cloud_worker.training.averaging import Averaging
    from keras_earlyexit import snapshots

    shapes = [tuple(v.shape) for v in snapshots.float_weights(segment)]
    return Averaging(shapes, state, quorum, wait_s)
