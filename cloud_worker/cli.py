"""The command `cloud-worker`."""

import asyncio
import inspect
import pathlib
import sys
import types
import typing

from keras_earlyexit.cli.shared import (
    EXIT_CODES,
    ExitCode,
    install_command,
    version_of,
)

NAME = "cloud-worker"

# `main` says what is missing, so it has to be there without them.
try:
    import pydantic_settings  # noqa: F401
    import typer
except ModuleNotFoundError as error:
    typer, _MISSING = None, error.name


def main(arguments=None):
    """Runs the command; returns its exit status."""
    if typer is None:
        return _fail(
            f"{NAME} needs the package {_MISSING}. Install it with: "
            f"{install_command('split')}",
            ExitCode.MISSING,
        )
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["serve"] and "--train" in arguments:
        # Training has settings of its own, so it is a command of its own.
        arguments.remove("--train")
        arguments[0] = "train"
    try:
        code = typer.main.get_command(_app()).main(
            args=arguments, prog_name=NAME, standalone_mode=True
        )
    except SystemExit as exit_:
        code = exit_.code
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    return code or ExitCode.OK


def _app():
    # Not at the top: it imports typer.
    from cloud_worker.training.command import train

    app = typer.Typer(
        name=NAME,
        help="Answers what edge workers could not, in batches.",
        epilog=EXIT_CODES,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def options(
        version: typing.Annotated[
            bool,
            typer.Option(
                "--version",
                help="Show the version.",
                is_eager=True,
                callback=_print_version,
            ),
        ] = False,
    ):
        pass

    app.command(epilog=EXIT_CODES)(_with_flags(serve))
    app.command(epilog=EXIT_CODES)(train)
    return app


def serve(config=None, print_config=False, **flags):
    """Serve bundles until told to stop.

    Each setting is also a key of the file behind --config and an environment
    variable, CLOUD_WORKER_ and its name; flags count most, then variables.
    """
    from cloud_worker.config import SettingsError, load

    try:
        settings = load(config, **flags)
    except SettingsError as error:
        raise typer.Exit(_fail(str(error), ExitCode.USAGE)) from error
    if print_config:
        print(settings.as_toml(), end="")
        return
    code = _serve(settings)
    if code:
        raise typer.Exit(code)


def _serve(settings):
    # gRPC is not needed before.
    from cloud_worker import forwarding, logs, server

    logs.configure(settings.log_level, sys.stdout)
    try:
        forwarder = forwarding.make(settings)
        asyncio.run(server.serve(settings, forwarder))
    except ImportError as error:
        return _fail(str(error), ExitCode.MISSING)
    except (ValueError, OSError) as error:
        return _fail(str(error), ExitCode.INPUT)
    return ExitCode.OK


def _with_flags(command):
    """A command with a flag for each setting, so that none is forgotten."""
    from cloud_worker.config import Settings

    path = typing.Annotated[
        pathlib.Path | None,
        typer.Option(help="TOML file with settings."),
    ]
    shows = typing.Annotated[
        bool, typer.Option(help="Show the settings as such a file, and end.")
    ]
    flags = {"config": (path, None), "print_config": (shows, False)}
    for name, field in Settings.model_fields.items():
        text = field.description
        if not field.is_required() and field.default is not None:
            text = f"{text} [default: {field.default}]"
        kind = _kind(field.annotation)
        option = typer.Option(help=text, show_default=False)
        flags[name] = (typing.Annotated[kind | None, option], None)

    def run(**values):
        return command(**values)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {name: kind for name, (kind, _) in flags.items()}
    run.__signature__ = inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=kind,
            )
            for name, (kind, default) in flags.items()
        ]
    )
    return run


def _kind(annotation):
    """What typer is to read for a setting; the schema checks it further."""
    if typing.get_origin(annotation) is tuple:
        return list[pathlib.Path]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return _kind(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is typing.Annotated:
        return _kind(typing.get_args(annotation)[0])
    return annotation if annotation in (int, float, bool, pathlib.Path) else str


def _print_version(wanted: bool):
    if wanted:
        print(f"{NAME} {version_of('keras-earlyexit') or 'not installed'}")
        raise typer.Exit()


def _fail(message, code):
    print(f"{NAME}: {message}", file=sys.stderr)
    return code
