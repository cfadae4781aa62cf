"""`keras-earlyexit widen`: further classes for a model or a segment."""

from typing import Annotated

import typer

from keras_earlyexit.cli import options
from keras_earlyexit.cli.models import check_output, load_model, save_model
from keras_earlyexit.cli.samples import load_labelled
from keras_earlyexit.cli.shared import (
    ExitCode,
    mendable,
    print_json,
    print_table,
)


def widen(
    names: Annotated[
        str, typer.Option(help="Names of the new classes: cat,dog.")
    ],
    output: options.Output,
    model: options.Model = None,
    data: options.OptionalData = None,
    split: options.Split = None,
    data_dir: options.DataDir = None,
    image_scale: options.ImageScale = 1.0,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
):
    """Widen every exit for further classes; the old ones are kept.

    Give the segments of a cut model one by one, with the same names. With
    --data, the accuracy of every exit before and after is measured.
    """
    check_output(output, ".keras")
    before = load_model(model)
    import keras_earlyexit as ee

    new = [name.strip() for name in names.split(",")]
    with mendable():
        after = ee.add_classes(before, new)
    samples = None
    if data is not None:
        samples = load_labelled(
            data,
            model=after,
            split=split,
            data_dir=data_dir,
            image_scale=image_scale,
        )
    facts = {
        "file": None if dry_run else str(output),
        "classes": after.head.units,
        "new": {name: before.head.units + i for i, name in enumerate(new)},
    }
    if not dry_run:
        save_model(after, output)
        if samples is not None:
            facts["accuracy"] = {
                name: [_accuracy(m, name, samples) for m in (before, after)]
                for name in before.exit_names
            }
    if as_json:
        print_json(facts)
    else:
        _print(facts)
    return ExitCode.OK


def _accuracy(model, name, samples):
    answers = model.net.predict(samples.x, verbose=0)[name]
    return float((answers.argmax(axis=-1) == samples.y.reshape(-1)).mean())


def _print(facts):
    rows = [
        (f"class {number}", name, "") for name, number in facts["new"].items()
    ]
    rows += [
        (f"{name} accuracy", f"{one:.2%}", f"{other:.2%}")
        for name, (one, other) in facts.get("accuracy", {}).items()
    ]
    print_table(
        f"{facts['file'] or 'Nothing written'}: {facts['classes']} classes",
        ("", ">before", ">after"),
        rows,
    )
