"""What all command-line programs here have in common.

A program is a set of functions, each a command with its options as parameters
and an exit status as its result. What the user can mend is printed without a
traceback; `--debug`, wherever it stands, shows it.
"""

import sys
import traceback
from typing import Annotated

from keras_earlyexit import memory, supervision
from keras_earlyexit.cli.shared import (
    CommandError,
    ExitCode,
    install_command,
    print_error,
    version_of,
)

_DISTRIBUTION = "keras-earlyexit"


def code_of(error):
    """The `ExitCode` that belongs to an exception."""
    if isinstance(error, CommandError):
        return error.code
    if isinstance(error, ImportError):
        return ExitCode.MISSING
    if isinstance(error, OSError):
        return ExitCode.INPUT
    return ExitCode.FAILED


def run(name, make_app, arguments=None, *, extra="cli", code_of=code_of):
    """Runs a program; returns its exit status.

    Args:
        name: Its name.
        make_app: A function that makes the app, see `app`. It may import what
            is not installed.
        arguments: List of texts; `None`: those of this process.
        extra: Which of our extras brings what it needs.
        code_of: A function from an exception to an exit status.
    """
    supervision.end_with_parent()
    memory.keep_freed()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Wherever it stands: people add it to the end of the line that failed.
    debug = "--debug" in arguments
    try:
        program = make_app()
    except ModuleNotFoundError as error:
        how = f"Install it with: {install_command(extra)}"
        print_error(f"{name} needs the package {error.name}. {how}", name)
        return ExitCode.MISSING
    try:
        program.main(
            args=[item for item in arguments if item != "--debug"],
            prog_name=name,
        )
    except SystemExit as exit_:
        return exit_.code or ExitCode.OK
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exception(error)
        code, text = code_of(error), str(error)
        if code == ExitCode.FAILED:
            hint = "" if debug else "\nThe same with --debug shows where."
            text = f"{type(error).__name__}: {error}{hint}"
        print_error(text, name)
        return code
    return ExitCode.OK


def app(name, about, commands, exit_codes):
    """A program made of commands, for `run`.

    Args:
        name: Its name.
        about: What it does.
        commands: List of functions whose parameters typer understands.
        exit_codes: What the exit statuses mean.
    """
    import typer

    from keras_earlyexit.cli.commands import Command

    def leave(code, **options):
        raise typer.Exit(code or ExitCode.OK)

    def print_version(wanted: bool):
        if wanted:
            version = version_of(_DISTRIBUTION) or "not installed"
            print(f"{name} {version}")
            raise typer.Exit()

    made = typer.Typer(
        name=name,
        help=about,
        epilog=exit_codes,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        result_callback=leave,
    )

    @made.callback()
    def options(
        version: Annotated[
            bool,
            typer.Option(
                "--version",
                help="Show the version.",
                is_eager=True,
                callback=print_version,
            ),
        ] = False,
        debug: Annotated[
            bool, typer.Option("--debug", help="Show tracebacks.")
        ] = False,
    ):
        pass

    for function in commands:
        made.command(cls=Command, epilog=exit_codes)(function)
    return typer.main.get_command(made)
