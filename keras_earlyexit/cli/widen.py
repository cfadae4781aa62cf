"""`keras-earlyexit widen`: further classes for a model or a segment."""

from typing import Annotated

import typer

from keras_earlyexit.cli import options
from keras_earlyexit.cli.models import check_output, load_model, save_model
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
    as_json: options.Json = False,
):
    """Widen every exit for further classes; the old ones are kept.

    Give the segments of a cut model one by one, with the same names. With
    --data, the accuracy of every exit before and after is measured.
    """
    check_output(output, ".keras")
    before = load_model(model)
    import keras_earlyexit as ee

    with mendable():
        after = ee.add_classes(before, names.split(","))
    save_model(after, output)
    facts = {
        "file": str(output),
        "classes": after.head.units,
        "new": {
            name: before.head.units + i
            for i, name in enumerate(names.split(","))
        },
    }
    if data is not None:
        from keras_earlyexit import sources

        shape = getattr(before.net, "input_shape", None) or (None,)
        x, y, _, _ = sources.load(
            data,
            split,
            default_split="test",
            input_shape=shape[1:],
            image_scale=image_scale,
            data_dir=data_dir,
        )
        facts["accuracy"] = {
            name: [_accuracy(m, name, x, y) for m in (before, after)]
            for name in before.exit_names
        }
    if as_json:
        print_json(facts)
    else:
        _print(facts)
    return ExitCode.OK


def _accuracy(model, name, x, y):
    answers = model.net.predict(x, verbose=0)[name]
    return float((answers.argmax(axis=-1) == y.reshape(-1)).mean())


def _print(facts):
    rows = [
        (f"class {number}", name, "") for name, number in facts["new"].items()
    ]
    rows += [
        (f"{name} accuracy", f"{one:.2%}", f"{other:.2%}")
        for name, (one, other) in facts.get("accuracy", {}).items()
    ]
    print_table(
        f"{facts['file']}: {facts['classes']} classes",
        ("", ">before", ">after"),
        rows,
    )
