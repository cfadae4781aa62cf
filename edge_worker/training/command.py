"""`edge-worker train`: trains the first segment and feeds the next one."""

import json
import pathlib
import resource
import time
from typing import Annotated

import typer

from edge_worker.cli.shared import ExitCode
from keras_earlyexit.cli import options
from keras_earlyexit.cli.models import load_model, make_optimizer
from keras_earlyexit.cli.shared import (
    check_package,
    print_facts,
    print_json,
)

_PATH = pathlib.Path | None


def train(
    model: Annotated[
        pathlib.Path,
        typer.Option(
            help="The .keras file of the whole model, with exits, or of its "
            "first segment."
        ),
    ],
    data: options.Data,
    cloud: Annotated[
        str, typer.Option(help="host:port of a cloud worker that trains.")
    ],
    state: Annotated[
        pathlib.Path,
        typer.Option(help="Folder for checkpoint and journal."),
    ] = pathlib.Path("edge_state"),
    output: options.Output = pathlib.Path("edge.keras"),
    cut: Annotated[
        list[str],
        typer.Option(
            help="Exit that this segment ends with; given again for each "
            "further cut, the same on all machines."
        ),
    ] = ("exit_0",),
    base: Annotated[
        str, typer.Option(help="Objective of each segment.")
    ] = "eenet_v2",
    epochs: options.Epochs = 1,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Batches of a source without an end, each taken once; in "
            "place of --epochs.",
        ),
    ] = None,
    memory_limit_mb: Annotated[
        int | None,
        typer.Option(
            "--memory-limit",
            min=1,
            help="Megabytes that this process may have in memory.",
        ),
    ] = None,
    batch_size: options.BatchSize = 32,
    optimizer: options.Optimizer = "adam",
    learning_rate: options.LearningRate = None,
    forward: Annotated[
        str,
        typer.Option(
            help="Which samples go up: non_exited, all, or a share of them."
        ),
    ] = "non_exited",
    codec: Annotated[
        str, typer.Option(help="Form in which features cross.")
    ] = "float32",
    data_dir: options.DataDir = None,
    split: options.Split = None,
    image_scale: options.ImageScale = 1.0,
    seed: options.Seed = 0,
    journal_mb: Annotated[
        int, typer.Option(min=1, help="Megabytes of the journal at most.")
    ] = 256,
    checkpoint_every: Annotated[
        int, typer.Option(min=1, help="Batches between checkpoints.")
    ] = 50,
    average_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Batches between averages of all edges' segments, whose "
            "weights go up for that (default: no averages).",
        ),
    ] = None,
    average_patience_s: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds without an answer after which an average is left "
            "out.",
        ),
    ] = 60.0,
    publish: Annotated[
        _PATH,
        typer.Option(
            help="Folder of the bundle to write at the end, together with the "
            "cloud worker's."
        ),
    ] = None,
    publish_format: Annotated[
        str, typer.Option(help="Format of that bundle.")
    ] = "litert",
    tensorboard: options.TensorBoard = None,
    ca: Annotated[
        _PATH, typer.Option(help="PEM file of the cloud's authority.")
    ] = None,
    cert: Annotated[
        _PATH, typer.Option(help="PEM file of this edge's certificate.")
    ] = None,
    key: Annotated[_PATH, typer.Option(help="PEM file of its key.")] = None,
    token_file: Annotated[
        _PATH, typer.Option(help="File whose first token is sent along.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option(help="Plain text; to a loopback address only.")
    ] = False,
    edge_id: Annotated[
        str | None,
        typer.Option(
            help="What this edge calls itself (default: as its certificate, "
            "or 'edge')."
        ),
    ] = None,
    summary: Annotated[
        _PATH, typer.Option(help="File to write the summary to, as JSON.")
    ] = None,
    as_json: options.Json = False,
):
    """Train this segment; features and labels go up, inputs do not.

    Killed and started again with the same options, it goes on where it was.
    """
    from protos.security import ClientSecurity, read_tokens

    security = ClientSecurity(
        ca=ca,
        cert=cert,
        key=key,
        token=None if token_file is None else read_tokens(token_file)[0],
        insecure=insecure,
    )
    callbacks = _callbacks(tensorboard)
    loaded = load_model(model)
    from edge_worker.training.trainer import EdgeTrainer
    from keras_earlyexit import sources
    from keras_earlyexit.snapshots import save_model

    input_shape = getattr(getattr(loaded, "net", loaded), "input_shape", None)
    x, y, weight, _ = sources.load(
        data,
        split,
        input_shape=(input_shape or (None,))[1:],
        image_scale=image_scale,
        data_dir=data_dir,
    )
    import keras_earlyexit as ee

    if isinstance(loaded, ee.SegmentModel):
        loaded.compile(make_optimizer(optimizer, learning_rate))
    trainer = EdgeTrainer(
        loaded,
        tuple(cut),
        cloud,
        state,
        base=base,
        optimizer=make_optimizer(optimizer, learning_rate),
        security=security,
        edge_id=edge_id or None,
        forward=forward,
        codec=codec,
        seed=seed,
        journal_bytes=journal_mb << 20,
        checkpoint_every=checkpoint_every,
        average_every=average_every,
        average_patience_s=average_patience_s,
        memory_limit=memory_limit_mb and memory_limit_mb << 20,
    )
    with trainer:
        started = time.perf_counter()
        trainer.fit(
            x,
            y,
            weight,
            epochs=epochs,
            steps=steps,
            batch_size=batch_size,
            callbacks=callbacks,
            verbose=0 if as_json else "auto",
        )
        seconds = time.perf_counter() - started
        save_model(trainer.segment, output)
        name = None
        if publish is not None:
            name = trainer.publish(publish, publish_format)
    facts = _summary(trainer, output, seconds)
    if name is not None:
        facts["generation"] = name
    if summary is not None:
        summary.write_text(f"{json.dumps(facts, indent=2)}\n")
    if as_json:
        print_json(facts)
    else:
        print_facts("Trained", _as_text(facts))
    return ExitCode.OK


def _callbacks(tensorboard):
    if tensorboard is None:
        return []
    check_package("tensorboard", "--tensorboard")
    import keras_earlyexit as ee

    return [ee.callbacks.TensorBoard(tensorboard)]


def _summary(trainer, output, seconds):
    cloud = trainer.cloud
    return {
        "file": str(output),
        "batches": cloud.committed,
        "seconds": round(seconds, 3),
        "bytes_up": cloud.bytes_up,
        "bytes_down": cloud.bytes_down,
        "cloud_loss": cloud.loss,
        "cloud_accuracy": cloud.accuracy,
        "cloud_idle_share": cloud.idle_share,
        "reconnects": max(cloud.reconnects, 0),
        "averages": trainer.averaging.rounds if trainer.averaging else 0,
        "peak_memory_mb": _peak_mb(),
    }


def _peak_mb():
    # In kilobytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _as_text(facts):
    return {
        "file": facts["file"],
        "batches": f"{facts['batches']:,}",
        "seconds": f"{facts['seconds']:,.1f}",
        "bytes up": f"{facts['bytes_up']:,}",
        "bytes down": f"{facts['bytes_down']:,}",
        "cloud loss": f"{facts['cloud_loss']:.4f}",
        "cloud accuracy": f"{facts['cloud_accuracy']:.1%}",
        "cloud waited": f"{facts['cloud_idle_share']:.0%} of the time",
        "reconnects": f"{facts['reconnects']:,}",
        "averages": f"{facts['averages']:,}",
        "memory at most": f"{facts['peak_memory_mb']:,} MB",
        "generation": facts.get("generation", "none was written")[:16],
    }
