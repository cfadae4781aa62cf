"""`keras-earlyexit merge`: segments that were trained apart as one model."""

import pathlib
from typing import Annotated

import typer

from keras_earlyexit.cli.info import load_model
from keras_earlyexit.cli.shared import (
    CommandError,
    ExitCode,
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
    output: Annotated[
        pathlib.Path,
        typer.Option("--output", "-o", help="The .keras file to write."),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of a table.")
    ] = False,
):
    """Put segments that were trained apart together again."""
    if output.suffix != ".keras":
        raise CommandError(
            f"Expected an output that ends in .keras. Received: '{output}'.",
            ExitCode.USAGE,
        )
    loaded = [load_model(path) for path in segments]
    import keras_earlyexit as ee
    from keras_earlyexit.snapshots import save_model

    try:
        model = ee.merge(*loaded)
    except (TypeError, ValueError) as error:
        raise CommandError(str(error), ExitCode.INPUT) from error
    try:
        save_model(model, output)
    except OSError as error:
        raise CommandError(
            f"'{output}' cannot be written: {error.strerror}.", ExitCode.INPUT
        ) from error
    facts = {
        "file": str(output),
        "name": model.name,
        "exits": ", ".join(model.exit_names),
        "policy": model.policy.name,
        "parameters": model.count_params(),
    }
    if as_json:
        print_json({**facts, "exits": list(model.exit_names)})
    else:
        count = f"{facts['parameters']:,}"
        print_facts("Merged", {**facts, "parameters": count})
    return ExitCode.OK
