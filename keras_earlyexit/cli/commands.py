"""How a command reads its command line.

Beside its own options it takes `--config`, and a model without `--model`.
"""

import pathlib
from typing import Annotated

import typer

from keras_earlyexit.cli import config_files


class Command(typer.core.TyperCommand):
    """A command of a program; see `apps.app`."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        #: What a file of settings may name -> name of the parameter.
        self.option_names = dict(map(_named, self.params))
        # One of its own may mean something else.
        if "config" not in self.option_names:
            self.params.append(_config_option())
        self._takes_model = any(
            param.name == "model" and not param.required
            for param in self.params
        )
        if self._takes_model:
            self.options_metavar = "[MODEL] [OPTIONS]"

    def parse_args(self, ctx, args):
        """Reads the command line, and the file that it names."""
        ctx.allow_extra_args = self._takes_model
        rest = super().parse_args(ctx, args)
        if self._takes_model and not ctx.resilient_parsing:
            self._take_model(ctx, rest)
            rest = ctx.args = []
        return rest

    def _take_model(self, ctx, rest):
        source = ctx.get_parameter_source("model")
        if rest and source.name != "COMMANDLINE":
            ctx.params["model"] = rest.pop(0)
        if rest:
            ctx.fail(f"Got unexpected extra argument ({rest[0]})")
        if ctx.params["model"] is None:
            ctx.fail("Missing option '--model'.")


def _read_config(ctx: typer.Context, path: pathlib.Path | None):
    if path is None or ctx.resilient_parsing:
        return
    group = ctx.parent.command if ctx.parent else None
    commands = getattr(group, "commands", {ctx.info_name: ctx.command})
    found = config_files.read(
        path,
        ctx.info_name,
        {name: set(x.option_names) for name, x in commands.items()},
    )
    names = ctx.command.option_names
    found = {names[name]: value for name, value in found.items()}
    for param in ctx.command.params:
        # On the command line it would stand there several times.
        if getattr(param, "multiple", False) and param.name in found:
            found[param.name] = found[param.name].split(",")
    ctx.default_map = found


def _named(param):
    """What a parameter is called on the line, and in the function."""
    flags = [x.removeprefix("--") for x in param.opts if x.startswith("--")]
    return (flags or [param.name])[0].replace("-", "_"), param.name


def _config_option():
    """The option as an object, which typer makes from functions only."""
    app = typer.Typer()

    @app.command()
    def command(
        config: Annotated[
            pathlib.Path | None,
            typer.Option(
                "--config",
                help="TOML file with options; those given here count more.",
                # Read before the others, whose defaults it has.
                is_eager=True,
                expose_value=False,
                callback=_read_config,
            ),
        ] = None,
    ):
        pass

    params = typer.main.get_command(app).params
    return next(param for param in params if param.name == "config")
