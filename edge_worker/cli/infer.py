"""`edge-worker infer`: answers the samples of a file."""

import contextlib
import json
import os
import sys
import time
from typing import Annotated

import numpy as np
import typer

from edge_worker.cli.shared import ExitCode
from edge_worker.inputs import Samples, as_answers
from keras_earlyexit.cli import options
from keras_earlyexit.cli.shared import print_json, print_table


def infer(
    settings,
    source: Annotated[
        str,
        typer.Option(
            "--input",
            help="An .npy file, a folder of images, or - for JSON lines.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", help="JSON lines to write, or - to print them."
        ),
    ],
    batch_size: options.BatchSize = 64,
    image_scale: options.ImageScale = 1.0,
    as_json: options.Json = False,
):
    """Answer every sample of a file, a folder or a stream."""
    with settings.start() as worker:
        manifest = worker.bundle.manifest
        samples = Samples(
            sys.stdin if source == "-" else source,
            manifest.stages[0].inputs,
            # Several batches at once, so that they overlap.
            batch_size * settings.config.max_in_flight
            if source != "-"
            else batch_size,
            image_scale,
        )
        milliseconds = []
        started = time.monotonic()
        with _writer(output) as write, _progress(samples.total) as advance:
            for ids, x in samples:
                began = time.monotonic()
                result = worker.predict(x, batch_size)
                milliseconds.append(1e3 * (time.monotonic() - began))
                answers = as_answers(result, manifest.class_names)
                for found, answer in zip(ids, answers, strict=True):
                    write({"id": found, **answer})
                advance(len(ids))
        seconds = time.monotonic() - started
        facts = _summary(worker, milliseconds, seconds)
    if as_json:
        _to(output, lambda: print_json(facts))
    else:
        _to(output, lambda: _print_summary(facts))
    return ExitCode.OK


@contextlib.contextmanager
def _writer(output):
    """A function that writes an object as a line."""
    if output == "-":
        yield lambda content: print(json.dumps(content), flush=True)
        return
    # Under its name once it is complete.
    temporary = f"{output}.partial"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            yield lambda content: file.write(f"{json.dumps(content)}\n")
        os.replace(temporary, output)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


@contextlib.contextmanager
def _progress(total):
    """A function that says how many samples more are done."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("samples", total=total)
        yield lambda count: progress.advance(task, count)


def _summary(worker, milliseconds, seconds):
    stats = worker.stats
    names = worker.bundle.exit_names
    return {
        "samples": stats["rows"],
        "seconds": seconds,
        "answered_by": stats["answered_by"],
        "exits": {names[i]: n for i, n in stats["exits"].items()},
        "bytes_up": stats["bytes_up"],
        "bytes_down": stats["bytes_down"],
        "offload": stats["offload"],
        "call_ms": {
            "median": float(np.median(milliseconds or [0.0])),
            "p99": float(np.percentile(milliseconds or [0.0], 99)),
        },
        "rows_over_cap": stats["rows_over_cap"],
        "errors": stats["errors"],
    }


def _print_summary(facts):
    count = max(facts["samples"], 1)
    rows = [
        (f"{kind} {name}", f"{number:,}", f"{100 * number / count:.1f} %")
        for kind, key in (("answered by", "answered_by"), ("left at", "exits"))
        for name, number in facts[key].items()
    ]
    sent = facts["answered_by"]["cloud"]
    rows += [
        (
            f"bytes {way}",
            f"{facts[key]:,}",
            f"{facts[key] / sent:,.0f} a sample" if sent else "",
        )
        for way, key in (("up", "bytes_up"), ("down", "bytes_down"))
    ]
    ms = facts["call_ms"]
    rows.append(
        ("ms a call, median", f"{ms['median']:.2f}", f"p99 {ms['p99']:.2f}")
    )
    rows += [
        (f"not answered: {name}", f"{number:,}", "calls")
        for name, number in facts["errors"].items()
    ]
    if facts["rows_over_cap"]:
        rows.append(("kept here by the cap", f"{facts['rows_over_cap']:,}", ""))
    print_table(
        f"{facts['samples']:,} samples in {facts['seconds']:.2f} s",
        ("", ">", ">"),
        rows,
    )


def _to(output, show):
    """Prints where answers do not go."""
    if output != "-":
        show()
        return
    with contextlib.redirect_stdout(sys.stderr):
        show()
