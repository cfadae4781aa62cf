"""`keras-earlyexit calibrate`: the threshold that keeps a risk or a budget."""

import dataclasses
import pathlib
import warnings
from typing import Annotated

import typer

from keras_earlyexit.cli import options
from keras_earlyexit.cli.models import (
    check_output,
    load_model_with_exits,
    save_model,
)
from keras_earlyexit.cli.samples import load
from keras_earlyexit.cli.shared import (
    CommandError,
    ExitCode,
    mendable,
    print_error,
    print_json,
    print_text,
)


def calibrate(
    data: options.Data,
    model: options.Model = None,
    output: Annotated[
        pathlib.Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The .keras file to write (default: the model's own).",
        ),
    ] = None,
    data_dir: options.DataDir = None,
    split: options.Split = None,
    image_scale: options.ImageScale = 1.0,
    policy: Annotated[
        str | None,
        typer.Option(help="How exits are scored (default: as now)."),
    ] = None,
    risk: Annotated[
        str,
        typer.Option(
            help="consistency (with the whole model) or performance_gap "
            "(against the labels)."
        ),
    ] = "consistency",
    loss: Annotated[str, typer.Option(help="zero_one or brier.")] = "zero_one",
    epsilon: Annotated[
        float, typer.Option(help="The risk that is allowed.")
    ] = 0.02,
    delta: Annotated[
        float, typer.Option(help="The chance that it is above that.")
    ] = 0.1,
    method: Annotated[
        str, typer.Option(help="ucb, ucb_hb, ltt, crc or empirical.")
    ] = "ucb",
    max_cost: Annotated[
        float | None, typer.Option(help="The mean relative cost allowed too.")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help="The mean relative cost to spend, in place of a risk."
        ),
    ] = None,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
):
    """Choose the threshold on samples that were not trained on.

    For data sets by name that is the split calibration, where there is one.
    """
    if output is not None:
        check_output(output, ".keras")
    if budget is not None and max_cost is not None:
        raise CommandError(
            "Expected --budget, or a risk and maybe --max-cost. Received: "
            f"--budget {budget:g} and --max-cost {max_cost:g}.",
            ExitCode.USAGE,
        )
    # With its optimizer, which is to be in the file that is written.
    loaded = load_model_with_exits(model, compiled=True)
    if output is None:
        output = pathlib.Path(model)
        check_output(output, ".keras")
    import keras_earlyexit as ee

    samples = load(
        data,
        model=loaded,
        split=split,
        default_split="calibration",
        image_scale=image_scale,
        data_dir=data_dir,
    )
    with mendable(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if policy is not None:
            loaded.policy = policy
        if budget is not None:
            report = ee.calibration.calibrate_budget(
                loaded, samples.x, budget=budget
            )
        else:
            report = ee.calibrate(
                loaded,
                samples.x,
                samples.y,
                risk=risk,
                loss=loss,
                epsilon=epsilon,
                delta=delta,
                method=method,
                max_cost=max_cost,
            )
    # A warning is a line here, not a place in a file.
    for warning in said:
        if issubclass(warning.category, UserWarning):
            print_error(str(warning.message))
    if not dry_run:
        save_model(loaded, output)
    if as_json:
        print_json({"file": None if dry_run else str(output), **_facts(report)})
    else:
        print_text(str(report))
        wrote = "Wrote nothing" if dry_run else f"Wrote {output}"
        print_text(f"{wrote}.")
    return ExitCode.OK


def _facts(report):
    """A report as plain values, without all the candidates."""
    return {
        field.name: _plain(getattr(report, field.name))
        for field in dataclasses.fields(report)
        if field.name != "walk"
    }


def _plain(value):
    return value.tolist() if hasattr(value, "tolist") else value
