"""`cloud-worker train`: trains a later segment from what edges send."""

import asyncio
import pathlib
import sys
from typing import Annotated

import typer

from keras_earlyexit.cli import options
from keras_earlyexit.cli.models import load_model
from keras_earlyexit.cli.shared import ExitCode

_PATH = pathlib.Path | None


def train(
    model: Annotated[
        pathlib.Path,
        typer.Option(help="The .keras file of the whole model, with exits."),
    ],
    state: Annotated[
        pathlib.Path, typer.Option(help="Folder of the ledger.")
    ] = pathlib.Path("cloud_state"),
    output: options.Output = pathlib.Path("cloud.keras"),
    cut: Annotated[
        str, typer.Option(help="Exit behind which this segment starts.")
    ] = "exit_0",
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
    security = ServerSecurity(
        cert=tls_cert,
        key=tls_key,
        client_ca=client_ca,
        token_file=token_file,
        insecure=insecure,
    )
    segment = _segment(model, cut, base, optimizer, learning_rate)
    from cloud_worker.training.serving import serve

    asyncio.run(
        serve(
            segment,
            state,
            listen,
            security,
            output,
            commit_every=commit_every,
            max_rows=max_batch,
        )
    )
    return ExitCode.OK


def _segment(model, cut, base, optimizer, learning_rate):
    loaded = load_model(model)
    import keras

    import keras_earlyexit as ee

    segment = ee.split(loaded, cut, base)[1]
    config = {} if learning_rate is None else {"learning_rate": learning_rate}
    segment.compile(
        keras.optimizers.get({"class_name": optimizer, "config": config})
    )
    return segment
