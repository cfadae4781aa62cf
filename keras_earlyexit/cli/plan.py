"""`keras-earlyexit plan`: where to cut a model between edge and cloud."""

import json
import pathlib
import re
from typing import Annotated

import typer

from keras_earlyexit.cli import options
from keras_earlyexit.cli.models import load_model
from keras_earlyexit.cli.shared import (
    CommandError,
    ExitCode,
    how_to_get,
    hushed,
    mendable,
    print_error,
    print_json,
    print_table,
    print_text,
)

_RATE = re.compile(r"([0-9.]+) ?(|k|M|G)bit/s(?::([0-9.]+) ?(us|ms|s))?")
_SIZE = re.compile(r"([0-9.]+) ?(|k|M|G)(i?)B")
_POWERS = {"": 0, "k": 1, "M": 2, "G": 3}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, None: 0.0}
_TRAINING_BATCH = 32


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
    as_json: options.Json = False,
):
    """Predict time and bytes for every cut of a model, and choose one."""
    given = {
        "link": parse_link(link),
        "memory_limit": parse_size(memory_limit),
        "exit_rates": _parse_rates(rates),
        "forward": _parse_forward(forward),
    }
    loaded = load_model(model)
    import keras_earlyexit as ee

    devices, measured = _devices(loaded, edge, cloud, mode, batch_size)
    with mendable():
        found = ee.plan_cut(
            loaded,
            *devices,
            mode=mode,
            batch_size=batch_size,
            objective=objective,
            bytes_per_element=bytes_per_element,
            input_bytes=input_bytes,
            samples=samples,
            pipelined=not one_by_one,
            **given,
        )
    if picture is not None:
        _draw(found, picture)
    if as_json:
        print_json(_facts(found, measured))
    else:
        _print_plan(found, measured)
    return ExitCode.OK


def parse_link(text):
    """A link from text such as `10Mbit/s:20ms`."""
    from keras_earlyexit.cost.measured import Link

    match = _RATE.fullmatch(text.strip())
    try:
        rate, prefix, trip, unit = match.groups()
        bits = float(rate) * 1000 ** _POWERS[prefix]
        return Link(bits, float(trip or 0) * _SECONDS[unit])
    except (AttributeError, ValueError) as error:
        raise CommandError(
            "Expected a link as its rate and its round trip, such as "
            f"10Mbit/s:20ms. Received: {text!r}. Rates are in bit/s, kbit/s, "
            "Mbit/s or Gbit/s, times in us, ms or s.",
            ExitCode.USAGE,
        ) from error


def parse_size(text):
    """Bytes from text such as `64MB`, or `None`."""
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip())
    try:
        number, prefix, binary = match.groups()
        base = 1024 if binary else 1000
        return float(number) * base ** _POWERS[prefix]
    except (AttributeError, ValueError) as error:
        raise CommandError(
            "Expected a size such as 64MB or 64MiB. Received: "
            f"{text!r}. Units are B, kB, MB and GB.",
            ExitCode.USAGE,
        ) from error


def _parse_rates(text):
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise CommandError(
            "Expected shares between commas, such as 0.6,0.2,0.2. Received: "
            f"{text!r}.",
            ExitCode.USAGE,
        ) from error


def _parse_forward(text):
    try:
        return float(text)
    except ValueError:
        # `plan_cut` knows the names.
        return text


def _devices(model, edge, cloud, mode, batch_size):
    """Two profiles, and for which sides this machine was measured."""
    import keras_earlyexit as ee

    found = [_profile(path) for path in (edge, cloud)]
    sides = zip(("edge", "cloud"), found, strict=True)
    missing = [side for side, profile in sides if profile is None]
    if missing:
        training = mode == "train"
        size = batch_size or (_TRAINING_BATCH if training else 1)
        sizes = (size,) if training else sorted({1, size})
        print_error(
            f"measuring this machine for: {', '.join(missing)}. Without "
            "profiles of the devices themselves, figures are only examples."
        )
        with hushed():
            own = ee.cost.profile(model, sizes, training=training)
        found = [profile or own for profile in found]
    return found, missing


def _profile(path):
    if path is None:
        return None
    from keras_earlyexit.cost.profiles import DeviceProfile

    try:
        return DeviceProfile.load(path)
    except (OSError, TypeError, ValueError) as error:
        raise CommandError(
            f"'{path}' is no profile of a device. {error} Write one with "
            "`ee.cost.profile(model).save(path)` on the device.",
            ExitCode.INPUT,
        ) from error


def _draw(found, picture):
    try:
        found.plot(picture)
    except ModuleNotFoundError as error:
        raise CommandError(
            f"A picture needs the package {error.name}. Install it: "
            f"{how_to_get(error.name)}",
            ExitCode.MISSING,
        ) from error
    except (OSError, ValueError) as error:
        raise CommandError(
            f"The picture cannot be saved to '{picture}': {error}",
            ExitCode.INPUT,
        ) from error


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
