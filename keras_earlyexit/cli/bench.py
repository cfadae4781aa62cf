"""`keras-earlyexit bench`: how long a model takes here, stage by stage."""

import json
import pathlib
from typing import Annotated

import typer

from keras_earlyexit.cli import options
from keras_earlyexit.cli.models import check_output, load_model
from keras_earlyexit.cli.samples import load, parse_sizes
from keras_earlyexit.cli.shared import (
    CommandError,
    ExitCode,
    hushed,
    mendable,
    print_facts,
    print_json,
    print_table,
    print_text,
)


def bench(
    model: options.Model = None,
    data: options.OptionalData = None,
    data_dir: options.DataDir = None,
    split: options.Split = None,
    image_scale: options.ImageScale = 1.0,
    batch_sizes: options.BatchSizes = "1,32,256",
    repeats: Annotated[
        int, typer.Option(min=1, help="Runs of everything.")
    ] = 20,
    output: Annotated[
        pathlib.Path | None,
        typer.Option(
            "--output", "-o", help="JSON file for the profile, for `plan`."
        ),
    ] = None,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
):
    """Measure a saved model, or a bundle: its stages, exits and routed answers.

    With --data real samples leave where they may, and routed answers are
    compared with the plain model's.
    """
    sizes = parse_sizes(batch_sizes)
    if output is not None:
        check_output(output, ".json")
    loaded = _load(model)
    samples = None
    if data is not None:
        samples = load(
            data,
            model=loaded,
            split=split,
            default_split="test",
            image_scale=image_scale,
            data_dir=data_dir,
        )
    if dry_run:
        _show_plan(loaded, sizes, repeats, samples, as_json)
        return ExitCode.OK
    # It imports Keras, for a model.
    from keras_earlyexit.cli.routed_runs import compare
    from keras_earlyexit.profiling.measuring import profile

    x = None if samples is None else samples.x
    with hushed(), mendable():
        found = profile(loaded, sizes, repeats=repeats, x=x)
        routed = []
        if x is not None and hasattr(loaded, "predict_exits"):
            routed = [compare(loaded, x, size, repeats) for size in sizes]
    if output is not None:
        found.save(output)
    if as_json:
        facts = json.loads(found.to_json())
        print_json({"profile": facts, "routed": routed})
    else:
        _print(found, routed)
        if output is not None:
            print_text(f"Wrote {output}, for `keras-earlyexit plan`.")
    return ExitCode.OK


def _load(path):
    """A Keras model, or a bundle."""
    if not (pathlib.Path(path) / "manifest.json").exists():
        return load_model(path)
    from keras_earlyexit.bundle import BundleError, load_bundle

    try:
        with hushed():
            return load_bundle(path)
    except (BundleError, OSError) as error:
        raise CommandError(str(error), ExitCode.INPUT) from error


def _show_plan(model, sizes, repeats, samples, as_json):
    facts = {
        "model": _name(model),
        "exits": list(getattr(model, "exit_names", ())),
        "batch_sizes": sizes,
        "repeats": repeats,
        "samples": None if samples is None else len(samples.x),
    }
    if as_json:
        print_json(facts)
        return
    print_facts(
        "Would measure",
        {
            "model": facts["model"],
            "exits": ", ".join(facts["exits"]) or "none",
            "batch sizes": ", ".join(map(str, sizes)),
            "runs": str(repeats),
            "samples": "zeros" if samples is None else f"{facts['samples']:,}",
        },
    )


def _name(model):
    manifest = getattr(model, "manifest", None)
    return model.name if manifest is None else manifest.model_name


def _print(found, routed):
    sizes = found.batch_sizes
    columns = ("", *(f">batch {size}" for size in sizes))
    rows = [
        (f"stage to {timing.name}", *_milliseconds(timing))
        for timing in found.stages
    ]
    rows += [
        (f"leaving at {timing.name}", *_milliseconds(timing))
        for timing in found.exits
    ]
    if found.plain is not None:
        rows.append(("plain model", *_milliseconds(found.plain)))
    machine = found.machine
    print_table(
        f"Milliseconds a batch of '{found.name}', median of the runs",
        columns,
        rows,
    )
    if routed:
        reference = routed[0]["reference"]
        print_table(
            f"Routed answers on real samples, beside {reference}",
            (
                ">batch",
                ">routed ms",
                f">{reference} ms",
                ">times as fast",
                ">relative cost",
            ),
            [
                (
                    f"{row['batch_size']}",
                    f"{1e3 * row['routed_seconds']:.3f}",
                    f"{1e3 * row['reference_seconds']:.3f}",
                    f"{row['reference_seconds'] / row['routed_seconds']:.2f}",
                    f"{row['mean_cost']:.3f}",
                )
                for row in routed
            ],
        )
    print_text(
        f"{machine.processor}, {machine.cpu_count} processors, "
        f"{machine.device}, {machine.backend}"
    )


def _milliseconds(timing):
    return [f"{1e3 * seconds:.3f}" for seconds in timing.seconds]
