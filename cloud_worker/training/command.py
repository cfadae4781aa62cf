"""`cloud-worker train`: trains a later segment from what edges send."""

import asyncio
import pathlib
import sys
from typing import Annotated

import typer

from cloud_worker.training import assembling
from keras_earlyexit.cli import options
from keras_earlyexit.cli.models import load_model, make_optimizer
from keras_earlyexit.cli.shared import ExitCode, mendable

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
    assembling.check_state(state, forward, average_quorum)
    security = ServerSecurity(
        cert=tls_cert,
        key=tls_key,
        client_ca=client_ca,
        token_file=token_file,
        insecure=insecure,
    )
    crew = assembling.crew_of(
        workers, worker_index, peer_timeout_s, listen, forward
    )
    if data_parallel:
        from cloud_worker.training import devices

        with mendable(ExitCode.USAGE):
            devices.spread()
    loaded = load_model(model)
    parts, position = assembling.segments_of(loaded, cut, base, segment)
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
        averaging = assembling.averaging_of(
            parts[position - 1], state, average_quorum, average_wait_s
        )
    outlet = assembling.outlet_of(
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
        publisher = assembling.publisher_of(
            loaded, trained, publish, publish_format
        )
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
