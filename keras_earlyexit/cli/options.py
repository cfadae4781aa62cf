"""The options that several commands have, each with one name and one form.

A command takes one as the annotation of a parameter of the same name:

    def report(model: options.Model, seed: options.Seed = 0): ...

Every command also has `--config`, and every program `--debug` (see `apps`).
"""

import pathlib
from typing import Annotated

import typer

_PATH = pathlib.Path | None

#: Required all the same: `apps.Command` also takes it without `--model`.
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="A .keras file. --model may be left out.",
    ),
]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="Name of a data set, folder with a folder of images for each "
        "class, .npz file with x and y, or module:function.",
    ),
]
OptionalData = Annotated[str | None, *Data.__metadata__]
DataDir = Annotated[
    _PATH,
    typer.Option("--data-dir", help="Folder of the data sets of TFDS."),
]
Split = Annotated[
    str | None,
    typer.Option(
        "--split", help="Which part of the data, such as test or train[90%:]."
    ),
]
ImageScale = Annotated[
    float,
    typer.Option(
        "--image-scale",
        help="What images of a folder, 0 to 255, are multiplied with.",
    ),
]
Output = Annotated[
    pathlib.Path, typer.Option("--output", "-o", help="What to write.")
]
OptionalOutput = Annotated[_PATH, *Output.__metadata__]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Take the place of what is there."),
]
Epochs = Annotated[
    int, typer.Option("--epochs", min=1, help="Passes over the data.")
]
BatchSize = Annotated[
    int, typer.Option("--batch-size", min=1, help="Samples in a batch.")
]
BatchSizes = Annotated[
    str, typer.Option("--batch-sizes", help="Such as 1,32,256.")
]
Optimizer = Annotated[
    str, typer.Option("--optimizer", help="Keras' name of the optimizer.")
]
LearningRate = Annotated[
    float | None, typer.Option("--learning-rate", help="Its learning rate.")
]
Rate = Annotated[
    float,
    typer.Option("--rate", help="Calls of each edge in a second, on average."),
]
BurstFactor = Annotated[
    float,
    typer.Option(
        "--burst-factor",
        min=1,
        help="How much faster an edge calls in a burst; 1: no bursts.",
    ),
]
BurstSeconds = Annotated[
    float, typer.Option("--burst-s", help="Mean seconds of a burst.")
]
Objective = Annotated[
    str, typer.Option("--objective", help="What is trained, see the guide.")
]
Seed = Annotated[
    int,
    typer.Option("--seed", min=0, help="What orders and draws follow from."),
]
ClassNames = Annotated[
    str | None,
    typer.Option("--class-names", help="Names of the classes: cat,dog,bird."),
]
TensorBoard = Annotated[
    _PATH, typer.Option("--tensorboard", help="Folder for TensorBoard.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON, for other programs.")
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Check everything, say what would be done."),
]
