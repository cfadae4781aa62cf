"""`edge-worker evaluate`: how right the two workers are together."""

import time
from typing import Annotated

import numpy as np
import typer

from edge_worker.cli.shared import ExitCode
from keras_earlyexit.cli import options
from keras_earlyexit.cli.shared import CommandError, print_json, print_table


def evaluate(
    settings,
    data: options.Data,
    split: Annotated[
        str | None,
        typer.Option(help="Which part of the data (default: test)."),
    ] = None,
    data_dir: options.DataDir = None,
    image_scale: options.ImageScale = 1.0,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Samples that are sent together.")
    ] = 64,
    as_json: options.Json = False,
):
    """Answer labelled samples and say how many answers are right, by exit."""
    from keras_earlyexit import sources

    with settings.start() as worker:
        manifest = worker.bundle.manifest
        if manifest.head["task"] != "classification":
            raise CommandError(
                "Expected a model that answers with classes. Received: one of "
                f"{manifest.head['task']}. Use `edge-worker infer`, and "
                "compare its answers.",
                ExitCode.INPUT,
            )
        specs = manifest.stages[0].inputs
        x, y, _, _ = sources.load(
            data,
            split,
            default_split="test",
            input_shape=specs[0].shape[1:],
            image_scale=image_scale,
            data_dir=data_dir,
        )
        if y is None:
            raise CommandError(
                f"Expected samples with labels in arrays. Received: {data!r}, "
                "which gives a data set.",
                ExitCode.INPUT,
            )
        started = time.monotonic()
        result = worker.predict(np.asarray(x), batch_size)
        facts = _facts(worker, result, y, time.monotonic() - started)
    if as_json:
        print_json(facts)
    else:
        _print(facts)
    return ExitCode.OK


def _facts(worker, result, y, seconds):
    y = np.reshape(y, (len(y), -1))
    y = y.argmax(-1) if y.shape[-1] > 1 else y[:, 0]
    right = result.predictions.argmax(axis=-1) == y
    answered_by = np.asarray(result.answered_by)
    groups = {
        **{
            name: result.exit_index == index
            for index, name in enumerate(worker.bundle.exit_names)
        },
        **{name: answered_by == name for name in np.unique(answered_by)},
    }
    return {
        "samples": len(y),
        "seconds": seconds,
        "accuracy": float(right.mean()),
        "mean_cost": result.mean_cost,
        "groups": {
            str(name): {
                "share": float(rows.mean()),
                "accuracy": float(right[rows].mean()) if rows.any() else None,
            }
            for name, rows in groups.items()
        },
        "bytes_up": int(result.bytes_up),
        "bytes_down": int(result.bytes_down),
        "errors": worker.stats["errors"],
    }


def _print(facts):
    rows = [
        (
            name,
            f"{group['share']:.1%}",
            "" if group["accuracy"] is None else f"{group['accuracy']:.2%}",
        )
        for name, group in facts["groups"].items()
    ]
    rows.append(("all", "100.0%", f"{facts['accuracy']:.2%}"))
    rows.append(("mean cost", f"{facts['mean_cost']:.3f}", ""))
    rows += [
        (
            f"bytes {way}",
            f"{facts[f'bytes_{way}']:,}",
            f"{facts[f'bytes_{way}'] / facts['samples']:,.0f} a sample",
        )
        for way in ("up", "down")
    ]
    rows += [
        (f"not answered: {name}", f"{number:,}", "calls")
        for name, number in facts["errors"].items()
    ]
    print_table(
        f"{facts['samples']:,} samples in {facts['seconds']:.2f} s",
        ("answered", ">share", ">right"),
        rows,
    )
