"""`keras-earlyexit report`: what a model does on a data set, as one page."""

import contextlib
import datetime
import functools
import math
import shlex
import sys
from typing import Annotated

import typer

from keras_earlyexit.cli import options, samples
from keras_earlyexit.cli.models import check_output, load_model_with_exits
from keras_earlyexit.cli.shared import (
    NAME,
    CommandError,
    ExitCode,
    mendable,
    print_facts,
    print_json,
)


def report(
    data: options.Data,
    output: options.Output,
    model: options.Model = None,
    data_dir: options.DataDir = None,
    split: options.Split = None,
    image_scale: options.ImageScale = 1.0,
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration",
            metavar="SPLIT",
            help="Other samples of the data, to choose the thresholds of the "
            "risk levels and temperatures on (default: no levels).",
        ),
    ] = None,
    levels: Annotated[
        str, typer.Option("--levels", help="Risks to mark.")
    ] = "0.01,0.02,0.05",
    reference: Annotated[
        list[str] | None,
        typer.Option(
            "--reference",
            metavar="NAME=ACCURACY",
            help="A static model to compare with, or NAME=ACCURACY@COST. May "
            "be given several times.",
        ),
    ] = None,
    class_names: options.ClassNames = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--time/--no-time", help="Measure the stages on this machine."
        ),
    ] = True,
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="What the training's was, for the page."),
    ] = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
):
    """Write what a model with exits does on a data set as one HTML file.

    The samples are the split test, where there is one.
    """
    check_output(output, ".html", overwrite=overwrite)
    references = dict(map(_reference, reference or ())) or None
    risks = [_level(level) for level in levels.split(",")]
    # The objective says which confidences can be drawn.
    loaded = load_model_with_exits(model, compiled=True)
    import keras_earlyexit as ee

    load = functools.partial(
        samples.load_labelled,
        data,
        model=loaded,
        data_dir=data_dir,
        image_scale=image_scale,
    )
    found = load(split=split)
    others = None if calibration is None else load(split=calibration)
    names = _class_names(class_names, loaded.head, found)
    facts = {
        "file": None if dry_run else str(output),
        "samples": len(found.y),
        "calibration samples": 0 if others is None else len(others.y),
    }
    if not dry_run:
        with mendable():
            ee.report.write_report(
                loaded,
                found.x,
                found.y,
                output,
                calibration=None if others is None else (others.x, others.y),
                references=references,
                class_names=names,
                levels=risks,
                profile=measure,
                notes=_notes(seed),
            )
        facts["bytes"] = output.stat().st_size
    if as_json:
        print_json(facts)
    else:
        title = "Nothing written" if dry_run else "Report"
        print_facts(title, {name: str(value) for name, value in facts.items()})
    return ExitCode.OK


def _class_names(text, head, found):
    from keras_earlyexit.report.samples import names_of

    names = found.class_names
    if text is not None:
        names = [name.strip() for name in text.split(",")]
    with mendable():
        return names_of(head, names)


def _level(text):
    level = _number(text, "--levels")
    if not 0 < level < 1:
        raise CommandError(
            f"Expected --levels between 0 and 1. Received: {text!r}.",
            ExitCode.USAGE,
        )
    return level


def _reference(text):
    """A static model from `NAME=ACCURACY` or `NAME=ACCURACY@COST`."""
    name, equals, place = text.rpartition("=")
    accuracy, at, cost = place.partition("@")
    if not equals or not name:
        raise CommandError(
            "Expected a reference such as ResNet=0.98 or ResNet=0.98@0.5. "
            f"Received: {text!r}.",
            ExitCode.USAGE,
        )
    accuracy = _number(accuracy, "--reference")
    return name, (_number(cost, "--reference"), accuracy) if at else accuracy


def _number(text, option):
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    raise CommandError(
        f"Expected a number in {option}. Received: {text!r}.", ExitCode.USAGE
    )


def _notes(seed):
    notes = {
        "command": shlex.join([NAME, *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
    }
    return notes if seed is None else {"seed": seed, **notes}
