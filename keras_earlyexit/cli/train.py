"""`keras-earlyexit train`: a model with exits, trained on data."""

import pathlib
import time
from typing import Annotated

import typer

from keras_earlyexit.cli import options
from keras_earlyexit.cli.checkpoints import Checkpoints
from keras_earlyexit.cli.models import check_output, save_model
from keras_earlyexit.cli.shared import (
    ExitCode,
    check_package,
    import_keras,
    print_error,
    print_facts,
    print_json,
    print_table,
    print_text,
)

#: What may differ between a training and its continuation.
_FREE = (
    *("output", "data_dir", "tensorboard"),
    *("as_json", "dry_run", "fresh"),
)


def train(
    data: options.Data,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="A .keras file, module:function, or one of ours: resnet20, "
            "eenet8_4. --model may be left out.",
        ),
    ] = None,
    output: options.Output = pathlib.Path("model.keras"),
    data_dir: options.DataDir = None,
    split: options.Split = None,
    image_scale: options.ImageScale = 1.0,
    input_shape: Annotated[
        str | None,
        typer.Option(
            help="What images of a folder are brought to for a new model: "
            "64,64,3."
        ),
    ] = None,
    validation_split: Annotated[
        float,
        typer.Option(
            min=0.0, max=0.9, help="Share of the samples to watch it on."
        ),
    ] = 0.1,
    exits: Annotated[
        str | None,
        typer.Option(
            help="How many early exits, or layers or shares of the work "
            "between commas (default: 2)."
        ),
    ] = None,
    placement: Annotated[
        str, typer.Option(help="Rule that places a number of exits.")
    ] = "pareto",
    block: Annotated[str, typer.Option(help="Kind of exit block.")] = "pool",
    policy: Annotated[
        str | None,
        typer.Option(help="How exits are scored (default: the objective's)."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="classification, multilabel or regression (default: read "
            "off the model's head)."
        ),
    ] = None,
    objective: options.Objective = "eenet_v2",
    cost_weight: Annotated[
        float | None,
        typer.Option(help="Weight of the cost in the objective."),
    ] = None,
    first_epochs: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Epochs in which the exits learn alone, without their cost "
            "(default: a third for eenet_v1 to v4, else 0).",
        ),
    ] = None,
    epochs: options.Epochs = 10,
    batch_size: options.BatchSize = 64,
    optimizer: options.Optimizer = "adam",
    learning_rate: options.LearningRate = None,
    seed: options.Seed = 0,
    tensorboard: options.TensorBoard = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start anew, not where it stopped.")
    ] = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
):
    """Give a model early exits and train it.

    Stopped and started again with the same options, it goes on with the epoch
    that was not finished.
    """
    settings = {
        name: value for name, value in locals().items() if name not in _FREE
    }
    check_output(output, ".keras")
    if tensorboard is not None:
        check_package("tensorboard", "--tensorboard")
    checkpoints = Checkpoints(output, settings)
    if not fresh:
        checkpoints.check()
    elif not dry_run:
        checkpoints.remove()
    import_keras().utils.set_random_seed(seed)
    # It imports Keras.
    from keras_earlyexit.cli.training import Training

    training = Training(settings, data_dir)
    facts = {
        "file": str(output),
        **training.facts(),
        "epochs_done": 0 if fresh else checkpoints.epochs_done,
    }
    if dry_run:
        _show(facts, as_json)
        return ExitCode.OK
    started = time.monotonic()
    try:
        training.fit([checkpoints.begin()], tensorboard, as_json)
    except KeyboardInterrupt:
        print_error(
            f"stopped after {checkpoints.epochs_done} of {epochs} epochs; the "
            "same command goes on from there. What is done is in "
            f"'{checkpoints.folder}'."
        )
        return ExitCode.INTERRUPTED
    save_model(training.model, output)
    checkpoints.remove()
    facts["seconds"] = time.monotonic() - started
    facts |= training.figures()
    _show(facts, as_json)
    return ExitCode.OK


def _show(facts, as_json):
    if as_json:
        print_json(facts)
        return
    trained = "figures" in facts
    print_facts(
        "Trained" if trained else "Would train",
        {
            "model": facts["model"],
            "samples": f"{facts['samples']:,}, and {facts['held_out']:,} to "
            "watch it on",
            "objective": facts["objective"],
            "optimizer": facts["optimizer"],
            "epochs": f"{facts['epochs']} of {facts['steps']} steps",
            "done already": f"{facts['epochs_done']} epochs",
            "file": facts["file"],
            **({"seconds": f"{facts['seconds']:.0f}"} if trained else {}),
        },
    )
    print_table(
        f"Exits, policy {facts['policy']!r}",
        ("exit", "behind", ">threshold", ">relative cost")
        + ((f">{facts['metric']}", ">share") if trained else ()),
        [_row(exit_, trained) for exit_ in facts["exits"]],
    )
    if trained and facts["figures"]:
        found = facts["figures"]
        print_text(
            f"Routed: {facts['metric']} {_number(found['routed'])} at "
            f"{found['mean_cost']:.1%} of the plain model's work."
        )
    if trained:
        print_text(
            "Choose the threshold on other samples next:\n"
            f"keras-earlyexit calibrate {facts['file']} --data DATA"
        )


def _row(exit_, trained):
    threshold = exit_["threshold"]
    row = (
        exit_["name"],
        exit_["layer"] or "the whole model",
        "-" if threshold is None else f"{threshold:.3g}",
        f"{exit_['relative_cost']:.3f}",
    )
    if trained:
        value, share = exit_.get("metric"), exit_.get("share")
        row += (
            "-" if value is None else _number(value),
            "-" if share is None else f"{share:.1%}",
        )
    return row


def _number(value):
    return f"{value:.2%}" if 0 <= value <= 1 else f"{value:.4g}"
