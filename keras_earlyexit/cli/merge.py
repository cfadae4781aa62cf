"""`keras-earlyexit merge`: segments that were trained apart as one model."""

import pathlib
from typing import Annotated

import typer

from keras_earlyexit.cli import options
from keras_earlyexit.cli.models import (
    check_output,
    load_model,
    save_model,
)
from keras_earlyexit.cli.shared import (
    ExitCode,
    mendable,
    print_facts,
    print_json,
)


def merge(
    segments: Annotated[
        list[pathlib.Path],
        typer.Argument(
            metavar="EDGE.keras CLOUD.keras",
            help="The segments, in their order.",
        ),
    ],
    output: options.Output,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
):
    """Put segments that were trained apart together again."""
    check_output(output, ".keras")
    loaded = [load_model(path) for path in segments]
    import keras_earlyexit as ee

    with mendable():
        model = ee.merge(*loaded)
    if not dry_run:
        save_model(model, output)
    facts = {
        "file": None if dry_run else str(output),
        "name": model.name,
        "exits": ", ".join(model.exit_names),
        "policy": model.policy.name,
        "parameters": model.count_params(),
    }
    if as_json:
        print_json({**facts, "exits": list(model.exit_names)})
    else:
        count = f"{facts['parameters']:,}"
        title = "Nothing written" if dry_run else "Merged"
        facts["file"] = str(output)
        print_facts(title, {**facts, "parameters": count})
    return ExitCode.OK
