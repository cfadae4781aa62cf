"""The command `cloud-worker`."""

import asyncio
import inspect
import pathlib
import sys
import types
import typing

from keras_earlyexit.cli import apps
from keras_earlyexit.cli.shared import EXIT_CODES, ExitCode
from protos.polling import poll_directly

NAME = "cloud-worker"
#: After so long a thread that waits for Python gets it. The stages' thread
#: needs it between two batches, and by default would stand still for up to 5 ms
#: while the event loop reads messages.
_SWITCH_S = 2e-4


def main(arguments=None):
    """Runs the command; returns its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["serve"] and "--train" in arguments:
        # Training has settings of its own, so it is a command of its own.
        arguments.remove("--train")
        arguments[0] = "train"
    return apps.run(NAME, _app, arguments, extra="split", code_of=_code_of)


def _app():
    # Not at the top: they import typer and pydantic.
    from cloud_worker.capacity.command import capacity
    from cloud_worker.training.command import train

    commands = [_with_flags(serve), train, capacity]
    about = "Answers what edge workers could not, in batches."
    return apps.app(NAME, about, commands, EXIT_CODES)


def _code_of(error):
    if type(error).__name__ == "SettingsError":
        return ExitCode.USAGE
    code = apps.code_of(error)
    if code == ExitCode.FAILED and isinstance(error, (TypeError, ValueError)):
        return ExitCode.INPUT
    return code


def serve(config=None, print_config=False, **flags):
    """Serve bundles until told to stop.

    Each setting is also a key of the file behind --config and an environment
    variable, CLOUD_WORKER_ and its name; flags count most, then variables.
    """
    from cloud_worker.config import load

    settings = load(config, **flags)
    if print_config:
        print(settings.as_toml(), end="")
        return ExitCode.OK
    if settings.engine != "ray":
        # Ray has a gRPC of its own, and its processes inherit what is set.
        poll_directly()
    # gRPC is not needed before, nor could be told how to poll after.
    from cloud_worker import forwarding, logs, server

    sys.setswitchinterval(_SWITCH_S)
    logs.configure(settings.log_level, sys.stdout)
    if settings.engine == "ray":
        from cloud_worker.engines import on_ray

        asyncio.run(on_ray.serve(settings))
        return ExitCode.OK
    forwarder = forwarding.make(settings)
    asyncio.run(server.serve(settings, forwarder))
    return ExitCode.OK


def _with_flags(command):
    """A command with a flag for each setting, so that none is forgotten."""
    import typer

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
            text = f"{text} (default: {field.default})"
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
        # Paths or URLs.
        return list[str]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return _kind(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is typing.Annotated:
        return _kind(typing.get_args(annotation)[0])
    return annotation if annotation in (int, float, bool, pathlib.Path) else str
