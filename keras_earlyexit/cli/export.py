"""`keras-earlyexit export`: a bundle, to answer without Keras."""

import dataclasses
import pathlib
from typing import Annotated

import typer

from keras_earlyexit.bundle import writing
from keras_earlyexit.cli import options
from keras_earlyexit.cli.models import check_output, load_model_with_exits
from keras_earlyexit.cli.samples import load
from keras_earlyexit.cli.shared import (
    CommandError,
    ExitCode,
    hushed,
    mendable,
    print_facts,
    print_json,
    print_text,
)

_MOST_SAMPLES = 1000


def export(
    model: options.Model = None,
    output: options.Output = pathlib.Path("bundle"),
    format: Annotated[
        str, typer.Option(help="litert, saved_model, onnx or keras.")
    ] = "litert",
    cut: Annotated[
        list[str] | None,
        typer.Option(
            help="Exit behind which to cut, into a bundle for each machine. "
            "May be given several times."
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(help="int8, float16 or dynamic, for litert."),
    ] = None,
    data: options.OptionalData = None,
    data_dir: options.DataDir = None,
    split: options.Split = None,
    image_scale: options.ImageScale = 1.0,
    class_names: options.ClassNames = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
):
    """Write a model as a bundle, and check that it answers as the model does.

    With --data the answers are compared on real samples, at most 1,000 of
    them, and int8 chooses its ranges from the first 256.
    """
    check_output(output, overwrite=overwrite)
    # Bundles are all that is replaced.
    writing.check_free(str(output), overwrite)
    loaded = load_model_with_exits(model)
    import keras_earlyexit as ee
    from keras_earlyexit.exporting import formats
    from keras_earlyexit.splitting.partitioning import segment_bounds

    with mendable(ExitCode.USAGE):
        formats.check(format, quantize)
        if cut:
            segment_bounds(loaded, cut)
    if quantize == "int8" and data is None:
        raise CommandError(
            "Expected --data for --quantize int8, to choose the ranges of all "
            "values from. Received: none. Name the training data.",
            ExitCode.USAGE,
        )
    samples = None
    if data is not None:
        samples = load(
            data,
            model=loaded,
            split=split,
            image_scale=image_scale,
            data_dir=data_dir,
        )
    if dry_run:
        _show_plan(loaded, output, format, cut, quantize, as_json)
        return ExitCode.OK
    names = _class_names(class_names, samples)
    with mendable(), hushed():
        report = ee.export(
            loaded,
            output,
            format=format,
            cut=cut or None,
            overwrite=overwrite,
            quantize=quantize,
            representative=_few(samples),
            class_names=names,
        )
    if as_json:
        print_json(dataclasses.asdict(report))
    else:
        print_text(str(report))
        for path in report.bundles:
            print_text(f"Wrote {path}.")
    return ExitCode.OK


def _class_names(text, samples):
    if text is not None:
        return [name.strip() for name in text.split(",")]
    return None if samples is None else samples.class_names


def _few(samples):
    if samples is None:
        return None
    x = samples.x[:_MOST_SAMPLES]
    return x if samples.y is None else (x, samples.y[:_MOST_SAMPLES])


def _show_plan(model, output, format, cut, quantize, as_json):
    facts = {
        "path": str(output),
        "format": format,
        "quantize": quantize,
        "stages": list(model.exit_names),
        "cut": list(cut or []),
        "segments": len(cut or []) + 1,
    }
    if as_json:
        print_json(facts)
    else:
        print_facts(
            "Would write",
            {
                "folder": facts["path"],
                "format": f"{format} {quantize or ''}".strip(),
                "stages": ", ".join(facts["stages"]),
                "bundles": str(facts["segments"]),
            },
        )
