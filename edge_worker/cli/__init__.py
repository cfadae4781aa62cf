"""The command `edge-worker`; a module for each subcommand.

Nothing that runs a model is imported before a command needs it.
"""

import os

from edge_worker.cli.shared import EXIT_CODES, NAME, code_of
from keras_earlyexit.cli import apps
from protos.polling import poll_directly


def main(arguments=None):
    """Runs the command; returns its exit status."""
    # What gRPC says of connections that end is said here too, and better.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    poll_directly()
    return apps.run(NAME, _app, arguments, extra="edge", code_of=code_of)


def _app():
    # Not at the top: they import typer.
    from edge_worker.cli.doctor import doctor
    from edge_worker.cli.evaluate import evaluate
    from edge_worker.cli.flags import with_flags
    from edge_worker.cli.infer import infer
    from edge_worker.cli.load import load
    from edge_worker.cli.serve import serve
    from edge_worker.training.command import train

    answering = (infer, evaluate, serve, load, doctor)
    commands = [*map(with_flags, answering), train]
    about = "Answers what an early exit can, asks a cloud worker for the rest."
    return apps.app(NAME, about, commands, EXIT_CODES)
