"""`keras-earlyexit plan`: where to cut a model between edge and cloud."""

import json
import pathlib
from typing import Annotated

import typer

from keras_earlyexit.cli import options, plan_inputs
from keras_earlyexit.cli.models import load_model
from keras_earlyexit.cli.shared import (
    CommandError,
    ExitCode,
    hushed,
    mendable,
    print_error,
    print_facts,
    print_json,
    print_table,
    print_text,
)


def plan(
    link: Annotated[
        str,
        typer.Option(
            help="Rate and round trip of the link, such as 10Mbit/s:20ms."
        ),
    ],
    model: options.Model = None,
    edge: Annotated[
        pathlib.Path | None,
        typer.Option(help="Profile of the edge; without: this machine's."),
    ] = None,
    cloud: Annotated[
        pathlib.Path | None,
        typer.Option(help="Profile of the cloud; without: this machine's."),
    ] = None,
    mode: Annotated[
        str, typer.Option(help="What for: infer or train.")
    ] = "infer",
    rates: Annotated[
        str | None,
        typer.Option(
            help="Share of samples that leaves at each exit: 0.6,0.2,0.2."
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Samples in a batch.", min=1),
    ] = None,
    objective: Annotated[
        str, typer.Option(help="What is to be least: seconds or bytes.")
    ] = "seconds",
    memory_limit: Annotated[
        str | None,
        typer.Option(help="Memory of the edge, such as 64MB."),
    ] = None,
    bytes_per_element: Annotated[
        float | None,
        typer.Option(
            help="Bytes of a number of a feature on the link: 1 for 8 bits."
        ),
    ] = None,
    input_bytes: Annotated[
        int | None, typer.Option(help="Bytes of a raw sample.", min=1)
    ] = None,
    forward: Annotated[
        str,
        typer.Option(
            help="Training samples sent: all, non_exited, or a share."
        ),
    ] = "all",
    samples: Annotated[
        int | None, typer.Option(help="Training samples in an epoch.", min=1)
    ] = None,
    one_by_one: Annotated[
        bool,
        typer.Option(
            "--one-by-one", help="Train on one batch after the other."
        ),
    ] = False,
    picture: Annotated[
        pathlib.Path | None,
        typer.Option(
            "--plot", help="Draw the plan to a .png, .svg or .pdf file."
        ),
    ] = None,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
):
    """Predict time and bytes for every cut of a model, and choose one.

    Without a profile of a device, this machine is measured in its place.
    """
    given = {
        "link": plan_inputs.parse_link(link),
        "mode": mode,
        "batch_size": batch_size,
        "objective": objective,
        "bytes_per_element": bytes_per_element,
        "input_bytes": input_bytes,
        "samples": samples,
        "pipelined": not one_by_one,
        "memory_limit": plan_inputs.parse_size(memory_limit),
        "exit_rates": plan_inputs.parse_rates(rates),
        "forward": plan_inputs.parse_forward(forward),
    }
    if picture is not None:
        plan_inputs.check_picture(picture)
    profiles = {
        "edge": plan_inputs.read_profile(edge),
        "cloud": plan_inputs.read_profile(cloud),
    }
    missing = [side for side, profile in profiles.items() if profile is None]
    loaded = load_model(model)
    import keras_earlyexit as ee

    def planned(stand_in):
        devices = [profile or stand_in for profile in profiles.values()]
        return ee.plan_cut(loaded, *devices, **given)

    sizes = plan_inputs.sizes_for(mode, batch_size)
    with mendable():
        # Nobody waits for a measurement, to be told of a mistake then.
        found = planned(plan_inputs.stand_in(loaded, sizes))
        if missing and not dry_run:
            found = planned(_measure(loaded, missing, sizes, mode))
    if dry_run:
        _show_steps(found, missing, sizes, picture, as_json)
        return ExitCode.OK
    if picture is not None:
        _draw(found, picture)
    if as_json:
        print_json(_facts(found, missing))
    else:
        _print_plan(found, missing)
    return ExitCode.OK


def _measure(model, sides, sizes, mode):
    import keras_earlyexit as ee

    print_error(
        f"measuring this machine for: {', '.join(sides)}. Without profiles of "
        "the devices themselves, figures are only examples."
    )
    with hushed():
        return ee.cost.profile(model, sizes, training=mode == "train")


def _draw(found, picture):
    try:
        found.plot(picture)
    except OSError as error:
        raise CommandError(
            f"The picture cannot be saved to '{picture}': {error}",
            ExitCode.INPUT,
        ) from error


def _show_steps(found, missing, sizes, picture, as_json):
    """Says what a plan would measure, compare and write."""
    facts = {
        "model": found.model,
        "mode": found.mode,
        "cuts": [row.name for row in found.cuts],
        "measured_here": missing,
        "batch_sizes": list(sizes) if missing else [],
        "picture": None if picture is None else str(picture),
    }
    if as_json:
        print_json(facts)
        return
    shown = {
        "model": f"{found.model}, to {found.mode}",
        "cuts": ", ".join(facts["cuts"]),
        "measured here": ", ".join(missing) or "nothing",
    }
    if missing:
        shown["in batches of"] = ", ".join(map(str, sizes))
    if picture is not None:
        shown["picture"] = facts["picture"]
    print_facts("Would plan", shown)


def _facts(found, measured):
    best, choice = found.best, found.choice
    return {
        "plan": json.loads(found.to_json()),
        "best": None if best is None else best.name,
        "choice": None if choice is None else [choice.way, choice.name],
        "advice": found.advice,
        "measured_here": measured,
        "why": [
            {"way": row.way, "name": row.name, "why": found.why(row)}
            for row in found.rows
        ],
    }


def _print_plan(found, measured):
    from keras_earlyexit.planning import wording

    print_table(wording.title(found), *wording.figures(found))
    print_table("Why", *wording.reasons(found))
    for line in wording.remarks(found):
        print_text(line)
    if measured:
        print_text(
            f"Measured on this machine: {' and '.join(measured)}; the "
            "devices themselves will differ."
        )
