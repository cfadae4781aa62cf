"""`keras-earlyexit tune`: searches exits for a budget, with KerasTuner."""

import importlib
import logging
import pathlib
from typing import Annotated

import typer

from keras_earlyexit.cli import (
    options,
    tune_inputs,
    tune_results,
    tune_search,
)
from keras_earlyexit.cli.shared import (
    CommandError,
    ExitCode,
    how_to_get,
    hushed,
    print_error,
)

KINDS = ("bayesian", "random", "hyperband", "grid")


def tune(
    data: options.Data,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="The network without exits: module:function, a .keras file, "
            "or one of ours, such as eenet8_4. --model may be left out.",
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help="Mean relative cost that may be spent, such as 0.4; without: "
            "the whole curve counts."
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option(min=1, help="How many to run in all.")
    ] = 30,
    tuner: Annotated[
        str, typer.Option(help=f"Who draws them: {', '.join(KINDS)}.")
    ] = "bayesian",
    epochs: options.Epochs = 5,
    batch_size: options.BatchSize = 64,
    output: options.Output = pathlib.Path("tuning"),
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Begin anew, without what is there."),
    ] = False,
    exits: Annotated[
        str, typer.Option(help="Least and most early exits.")
    ] = "1-3",
    placements: Annotated[
        str, typer.Option(help="free, or rules: pareto,fine,linear ...")
    ] = "free",
    blocks: Annotated[
        str, typer.Option(help="Exit blocks: pool,bnpool,plain,conv.")
    ] = "pool",
    objectives: Annotated[
        str, typer.Option(help="Training objectives, see the guide.")
    ] = "branchynet,sdn,eenet_v2",
    policies: Annotated[
        str, typer.Option(help="Policies; own is the objective's.")
    ] = "own",
    cost_weights: Annotated[
        str, typer.Option(help="Weights of the cost, least and most.")
    ] = "0.1-3",
    learning_rates: Annotated[
        str, typer.Option(help="Learning rates, least and most.")
    ] = "0.0003-0.01",
    prune: Annotated[
        bool,
        typer.Option(help="Stop trials that another has left behind."),
    ] = True,
    workers: Annotated[
        int,
        typer.Option(min=0, help="Processes that run trials; 0: this one."),
    ] = 0,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Hand trials to other machines too. Nobody is asked who he "
            "is: only in a network that you trust.",
        ),
    ] = None,
    join: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Run trials of a search that listens there; --output is its "
            "folder, shared.",
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Let Optuna draw the trials and keep them in this database, "
            "such as sqlite:///search.db; the same command on other machines "
            "takes part.",
        ),
    ] = None,
    study: Annotated[
        str, typer.Option(help="Name of the study in that database.")
    ] = "exits",
    data_dir: options.DataDir = None,
    seed: options.Seed = 0,
    tensorboard: options.TensorBoard = None,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
):
    """Search exits, places and training for a budget; save the best model.

    Goes on where it was after an interruption: give the same command again.
    """
    settings = {
        "model": model,
        "data": data,
        "budget": budget,
        "tuner": _checked_kind(tuner),
        "epochs": epochs,
        "batch_size": batch_size,
        "exits": exits,
        "placements": placements,
        "blocks": blocks,
        "objectives": objectives,
        "policies": policies,
        "cost_weights": cost_weights,
        "learning_rates": learning_rates,
        "prune": prune,
        "seed": seed,
        "storage": storage,
        "study": study,
    }
    _check_packages("optuna" if storage else "keras_tuner")
    # That every trial has functions of its own is meant.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    search = tune_search.Search(settings, data_dir, output, trials)
    for option, text in (("listen", listen), ("join", join)):
        if text is not None:
            tune_search.parse_address(option, text)
    if tune_search.is_one_of_a_crew():
        search.run()
        return ExitCode.OK
    if join is not None:
        search.help(join, max(workers, 1))
        return ExitCode.OK
    if overwrite and storage is not None:
        raise CommandError(
            "Expected --overwrite without --storage: what is in a database "
            f"stays. Received: --storage {storage}. Give another --study.",
            ExitCode.USAGE,
        )
    if output.exists() and not output.is_dir():
        raise CommandError(
            f"Expected --output to be a folder. Received: '{output}', which "
            "is none.",
            ExitCode.INPUT,
        )
    search.check()
    if dry_run:
        tune_results.show_plan(search, as_json)
        return ExitCode.OK
    output.mkdir(parents=True, exist_ok=True)
    with tune_inputs.only_one(output, shared=storage is not None):
        if overwrite:
            tune_inputs.clear(output)
        if storage is not None:
            # A database that cannot be had leaves nothing behind.
            search.study  # noqa: B018
        # How many trials Hyperband needs follows from the epochs.
        total = None if tuner == "hyperband" else trials
        progress = tune_results.Progress(output, total)
        if tune_inputs.same_search(output, settings):
            progress.resume()
        try:
            if workers or listen is not None:
                search.run_crew(workers, listen, progress)
            else:
                search.run(progress)
        except KeyboardInterrupt:
            print_error("interrupted; the same command goes on from here")
            raise
        facts = tune_results.finish(search, tensorboard)
    tune_results.show(facts, as_json)
    return ExitCode.OK


def _checked_kind(kind):
    if kind not in KINDS:
        raise CommandError(
            f"Expected --tuner to be one of {', '.join(KINDS)}. Received: "
            f"{kind!r}.",
            ExitCode.USAGE,
        )
    return kind


def _check_packages(*wanted):
    try:
        with hushed():
            for name in (*wanted, "matplotlib", "tensorboard"):
                importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise CommandError(
            f"A search needs the package {error.name}. Install it: "
            f"{how_to_get(error.name.replace('_', '-'))}",
            ExitCode.MISSING,
        ) from error
