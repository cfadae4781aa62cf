"""The command `edge-worker`; a module for each subcommand.

Nothing that runs a model is imported before a command needs it.
"""

import os
import sys
import traceback
from typing import Annotated

from edge_worker.cli.shared import (
    EXIT_CODES,
    NAME,
    ExitCode,
    code_of,
    print_error,
)
from keras_earlyexit.cli.shared import install_command, version_of

# `main` says what is missing, so it has to be there without typer.
try:
    import typer
except ModuleNotFoundError:
    typer = None


def main(arguments=None):
    """Runs the command; returns its exit status."""
    if typer is None:
        print_error(
            f"{NAME} needs the package typer. Install it with: "
            f"{install_command('edge')}"
        )
        return ExitCode.MISSING
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Wherever it stands: people add it to the end of the line that failed.
    debug = "--debug" in arguments
    # What gRPC says of connections that end is said here too, and better.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        typer.main.get_command(_app()).main(
            args=[item for item in arguments if item != "--debug"],
            prog_name=NAME,
        )
    except SystemExit as exit_:
        return exit_.code or ExitCode.OK
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exception(error)
        code = code_of(error)
        text = str(error)
        if code == ExitCode.FAILED:
            hint = "" if debug else "\nThe same with --debug shows where."
            text = f"{type(error).__name__}: {error}{hint}"
        print_error(text)
        return code
    return ExitCode.OK


def _app():
    # Not at the top: they import typer.
    from edge_worker.cli.doctor import doctor
    from edge_worker.cli.flags import with_flags
    from edge_worker.cli.infer import infer
    from edge_worker.cli.serve import serve
    from edge_worker.training.command import train

    app = typer.Typer(
        name=NAME,
        help="Answers what an early exit can, asks a cloud worker for the "
        "rest.",
        epilog=EXIT_CODES,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        result_callback=_leave,
    )

    @app.callback()
    def options(
        version: Annotated[
            bool,
            typer.Option(
                "--version",
                help="Show the version.",
                is_eager=True,
                callback=_print_version,
            ),
        ] = False,
        debug: Annotated[
            bool, typer.Option("--debug", help="Show tracebacks.")
        ] = False,
    ):
        pass

    for command in (infer, serve, doctor):
        app.command(epilog=EXIT_CODES)(with_flags(command))
    app.command(epilog=EXIT_CODES)(train)
    return app


def _leave(code, **options):
    raise typer.Exit(code)


def _print_version(wanted: bool):
    if wanted:
        version = version_of("keras-earlyexit") or "not installed"
        print(f"{NAME} {version}")
        raise typer.Exit()
