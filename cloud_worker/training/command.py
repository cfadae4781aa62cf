"""`cloud-worker train`: trains a later segment from what edges send."""

import asyncio
import pathlib
import sys
from typing import Annotated

import typer

from keras_earlyexit.cli import options
from keras_earlyexit.cli.models import load_model, make_optimizer
from keras_earlyexit.cli.shared import CommandError, ExitCode, mendable
from keras_earlyexit.storage.urls import is_url

_PATH = pathlib.Path | None


def train(
    model: Annotated[
        pathlib.Path,
        typer.Option(
            help="The .keras file of the whole model, with exits, or of the "
            "segment that is trained here."
        ),
    ],
    state: Annotated[
        str,
        typer.Option(
            help="Folder of the ledger, or its URL in an object store, from "
            "which another machine can go on."
        ),
    ] = "cloud_state",
    output: options.Output = pathlib.Path("cloud.keras"),
    cut: Annotated[
        list[str],
        typer.Option(
            help="Exit that a segment ends with; given once for each cut, the "
            "same on all machines."
        ),
    ] = ("exit_0",),
    segment: Annotated[
        int | None,
        typer.Option(
            min=1, help="Which segment to train, from 1 on (default: the last)."
        ),
    ] = None,
    base: Annotated[
        str, typer.Option(help="Objective of each segment.")
    ] = "eenet_v2",
    optimizer: options.Optimizer = "adam",
    learning_rate: options.LearningRate = None,
    commit_every: Annotated[
        int, typer.Option(min=1, help="Batches between commits.")
    ] = 20,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Rows of the largest batch.")
    ] = 1024,
    average_quorum: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Average the edges' own segments when they ask for it, if so "
            "many take part (default: no averages).",
        ),
    ] = None,
    average_wait_s: Annotated[
        float,
        typer.Option(
            min=0.1, max=3600, help="Seconds that a round may wait for edges."
        ),
    ] = 60.0,
    forward: Annotated[
        str | None,
        typer.Option(
            help="host:port of a further worker that trains the next segment."
        ),
    ] = None,
    forward_samples: Annotated[
        str,
        typer.Option(
            help="Which samples go on to it: non_exited, all, or a share of "
            "them."
        ),
    ] = "non_exited",
    forward_codec: Annotated[
        str, typer.Option(help="Form in which features go to it.")
    ] = "float32",
    forward_ca: Annotated[
        _PATH, typer.Option(help="PEM file of its authority.")
    ] = None,
    forward_cert: Annotated[
        _PATH, typer.Option(help="PEM file of the certificate to show it.")
    ] = None,
    forward_key: Annotated[
        _PATH, typer.Option(help="PEM file of that certificate's key.")
    ] = None,
    forward_token_file: Annotated[
        _PATH, typer.Option(help="File whose first token is sent to it.")
    ] = None,
    forward_insecure: Annotated[
        bool,
        typer.Option(help="Plain text to it; on a loopback address only."),
    ] = False,
    forward_edge_id: Annotated[
        str,
        typer.Option(
            help="What this worker calls itself there; the certificate's name "
            "if it has one."
        ),
    ] = "cloud-worker",
    journal_mb: Annotated[
        int,
        typer.Option(
            min=1, help="Megabytes at most that wait for the further worker."
        ),
    ] = 256,
    workers: Annotated[
        str | None,
        typer.Option(
            help="host:port of all machines that train this segment together, "
            "the one with the ledger first: HOST:PORT,HOST:PORT. Only "
            "TensorFlow connects there, without any protection."
        ),
    ] = None,
    worker_index: Annotated[
        int, typer.Option(min=0, help="Which of --workers this is.")
    ] = 0,
    peer_timeout_s: Annotated[
        float,
        typer.Option(
            min=1, help="Seconds without the other machines to begin anew."
        ),
    ] = 60.0,
    data_parallel: Annotated[
        bool,
        typer.Option(
            help="Share every batch among the devices of this machine, on JAX."
        ),
    ] = False,
    bundle: Annotated[
        list[str],
        typer.Option(
            help="Bundle to answer from on the same port, a folder or a URL; "
            "may be given several times. Further settings are environment "
            "variables, as of `serve`."
        ),
    ] = (),
    publish: Annotated[
        _PATH,
        typer.Option(
            help="Folder of the bundle to write when an edge publishes."
        ),
    ] = None,
    publish_format: Annotated[
        str, typer.Option(help="Format of that bundle.")
    ] = "litert",
    listen: Annotated[
        str, typer.Option(help="host:port; port 0 lets the system choose.")
    ] = "127.0.0.1:50052",
    tls_cert: Annotated[
        _PATH, typer.Option(help="PEM file of this worker's certificate.")
    ] = None,
    tls_key: Annotated[_PATH, typer.Option(help="PEM file of its key.")] = None,
    client_ca: Annotated[
        _PATH,
        typer.Option(help="PEM file of the authority that lets edges in."),
    ] = None,
    token_file: Annotated[
        _PATH, typer.Option(help="File with tokens that let edges in.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option(help="Plain text; on a loopback address only.")
    ] = False,
    log_level: Annotated[
        str, typer.Option(help="debug, info, warning or error.")
    ] = "info",
):
    """Train a later segment until told to stop, then write it.

    Killed and started again with the same options, it goes on where it was.
    """
    from cloud_worker import logs
    from protos.security import ServerSecurity

    logs.configure(log_level, sys.stdout)
    _check_state(state, forward, average_quorum)
    security = ServerSecurity(
        cert=tls_cert,
        key=tls_key,
        client_ca=client_ca,
        token_file=token_file,
        insecure=insecure,
    )
    crew = _crew(workers, worker_index, peer_timeout_s, listen, forward)
    if data_parallel:
        from cloud_worker.training import devices

        with mendable(ExitCode.USAGE):
            devices.spread()
    loaded = load_model(model)
    parts, position = _segments(loaded, cut, base, segment)
    trained = parts[position]
    trained.compile(make_optimizer(optimizer, learning_rate))
    stepper = None
    if crew is not None:
        from cloud_worker.training import replicas

        if crew.index:
            replicas.follow(trained, crew)
            return ExitCode.OK
        stepper = replicas.ReplicatedStepper(trained, crew)
    averaging = None
    if average_quorum is not None:
        averaging = _averaging(
            parts[position - 1], state, average_quorum, average_wait_s
        )
    outlet = _outlet(
        trained,
        forward,
        state,
        (forward_ca, forward_cert, forward_key),
        forward_token_file,
        forward_insecure,
        edge_id="" if forward_cert else forward_edge_id,
        forward=forward_samples,
        codec=forward_codec,
        journal_bytes=journal_mb << 20,
    )
    if data_parallel:
        stepper = devices.SpreadStepper(trained, outlet)
    publisher = None
    if publish is not None:
        publisher = _publisher(loaded, trained, publish, publish_format)
    answering = None
    if bundle:
        from cloud_worker.config import load

        answering = load(
            bundle=tuple(bundle),
            listen=listen,
            tls_cert=tls_cert,
            tls_key=tls_key,
            client_ca=client_ca,
            token_file=token_file,
            insecure=insecure or None,
            log_level=log_level,
        )
    from cloud_worker.training.serving import serve

    asyncio.run(
        serve(
            trained,
            state,
            listen,
            security,
            output,
            commit_every=commit_every,
            max_rows=max_batch,
            averaging=averaging,
            outlet=outlet,
            stepper=stepper,
            publisher=publisher,
            answering=answering,
        )
    )
    if crew is not None:
        stepper.close()
    return ExitCode.OK


def _crew(workers, index, patience_s, listen, forward):
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


def _check_state(state, forward, average_quorum):
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


def _segments(model, cuts, base, position):
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


def _publisher(model, segment, path, format):
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


def _outlet(segment, target, folder, tls, token_file, insecure, **options):
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


def _averaging(segment, state, quorum, wait_s):
    """The `Averaging` of the segment in front of the one that is trained."""
    _check_whole(segment, "--average-quorum")
    from cloud_worker.training.averaging import Averaging
    from keras_earlyexit import snapshots

    shapes = [tuple(v.shape) for v in snapshots.float_weights(segment)]
    return Averaging(shapes, state, quorum, wait_s)
