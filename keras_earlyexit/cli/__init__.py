"""The command `keras-earlyexit`.

Each command has a module: it collects plain facts, prints them as tables or,
with `--json`, as they are, and returns an `ExitCode`. What the user can mend
is raised as a `CommandError` and printed without a traceback.

Nothing heavy is imported before a command needs it, so that `--help` is
quick.
"""

import os
import sys
import traceback
from typing import Annotated

from keras_earlyexit.cli.shared import (
    EXIT_CODES,
    NAME,
    CommandError,
    ExitCode,
    install_command,
    print_error,
    version_of,
)

# `main` says what is missing, so it has to be there without typer.
try:
    import typer
except ModuleNotFoundError:
    typer = None


def main(arguments=None):
    """Runs the command; returns its exit status."""
    if typer is None:
        print(
            f"{NAME} needs the package typer. Install it with: "
            f"{install_command('cli')}",
            file=sys.stderr,
        )
        return ExitCode.MISSING
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Wherever it stands: people add it to the end of the line that failed.
    debug = "--debug" in arguments
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
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
        return _report(error, debug)
    return ExitCode.OK


def _app():
    # Not at the top: they import typer.
    from keras_earlyexit.cli.certs import certs
    from keras_earlyexit.cli.doctor import doctor
    from keras_earlyexit.cli.info import info
    from keras_earlyexit.cli.merge import merge
    from keras_earlyexit.cli.plan import plan

    app = typer.Typer(
        name=NAME,
        help="Early exits for Keras 3.",
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

    for command in (info, doctor, certs, merge, plan):
        app.command(epilog=EXIT_CODES)(command)
    return app


def _leave(code, **options):
    raise typer.Exit(code)


def _print_version(wanted: bool):
    if wanted:
        print(f"{NAME} {version_of(NAME) or 'not installed'}")
        raise typer.Exit()


def _report(error, debug):
    if debug:
        traceback.print_exception(error)
    if isinstance(error, CommandError):
        print_error(str(error))
        return error.code
    hint = "" if debug else "\nThe same command with --debug shows where."
    print_error(f"{type(error).__name__}: {error}{hint}")
    return ExitCode.FAILED
