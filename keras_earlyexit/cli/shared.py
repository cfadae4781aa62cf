"""What the commands share: errors, exit statuses, packages and printing."""

import contextlib
import enum
import json
import math
import os
import shutil
import sys
import tempfile
import textwrap
from importlib import metadata

NAME = "keras-earlyexit"

REQUIRED = ("keras", "numpy", "scipy")
# Package -> the extra that brings it; None where there is none to name.
PACKAGES = {
    **dict.fromkeys(REQUIRED),
    "tensorflow": "tensorflow",
    "jax": None,
    "torch": None,
    "tensorflow-datasets": "data",
    "scikit-learn": "data",
    "matplotlib": "report",
    "tensorboard": "tensorboard",
    "keras-tuner": "tune",
    "optuna": "optuna",
    "gradio": "demo",
    "grpcio": "split",
    "simpy": "capacity",
    "ai-edge-litert": "edge",
    "ray": "serve",
}


class ExitCode(enum.IntEnum):
    """What the command's exit status means."""

    OK = 0
    PROBLEM = 1  # doctor: something that is needed is missing
    USAGE = 2  # an unknown command or option
    MISSING = 3  # a package that the command needs is not installed
    INPUT = 4  # a file, data or value that is not what it should be
    FAILED = 5  # anything unexpected; --debug shows the traceback
    INTERRUPTED = 130


EXIT_CODES = (
    "Exit status: 0 fine, 1 doctor found a problem, 2 wrong usage, 3 a package "
    "is missing, 4 a file, data or value is not as it should be, 5 unexpected "
    "error, 130 interrupted."
)


class CommandError(Exception):
    """An error that the user can mend; the message says how."""

    def __init__(self, message, code):
        super().__init__(message)
        self.code = code


def version_of(name):
    """The installed version of a package, or `None`."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def how_to_get(package):
    """The command that installs a package."""
    if package in REQUIRED:
        return f"pip install {NAME}"
    extra = PACKAGES.get(package)
    return install_command(extra) if extra else f"pip install {package}"


def install_command(extra):
    """The command that installs one of our extras."""
    return f'pip install "{NAME}[{extra}]"'


def check_package(package, what):
    """Refuses to begin with something that needs a package that is missing.

    Args:
        package: Its name.
        what: What needs it, such as an option.
    """
    if version_of(package) is None:
        raise CommandError(
            f"{what} needs the package {package}. Install it with: "
            f"{how_to_get(package)}",
            ExitCode.MISSING,
        )


def import_keras():
    """Imports Keras with its backend, or says what is missing."""
    try:
        with hushed():
            import keras
    except (ImportError, ValueError) as error:
        how = "Set KERAS_BACKEND to tensorflow, jax or torch."
        if isinstance(error, ModuleNotFoundError):
            how = f"Install it: {how_to_get(error.name)}\nOr: {how}"
        raise CommandError(
            f"Keras cannot start: {error}. {how}", ExitCode.MISSING
        ) from error
    return keras


@contextlib.contextmanager
def hushed():
    """Keeps back what TensorFlow's C++ code writes while it starts.

    It does so past Python and past TF_CPP_MIN_LOG_LEVEL, mostly to say that
    there is no GPU. After an error it is printed: it may be the reason.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except Exception:
            sys.stderr.flush()
            file.seek(0)
            os.write(saved, file.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def print_json(facts):
    """Prints plain values as JSON."""
    print(json.dumps(_finite(facts), indent=2))


def _finite(value):
    """Writes infinities as text, since JSON has no number for them."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def print_facts(title, facts):
    """Prints a table with a name and a value in each row."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, _as_text(value))
    print_text(table)


def print_table(title, columns, rows):
    """Prints a table; a column whose name starts with `>` is set right."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in columns:
        is_number = name.startswith(">")
        table.add_column(
            name.lstrip(">"),
            justify="right" if is_number else "left",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*map(_as_text, row))
    print_text(table)


def _as_text(value):
    """Text that rich does not take for markup, such as `[extra]`."""
    from rich.text import Text

    return Text(value)


def print_text(what):
    """Prints text or a table of rich."""
    from rich.console import Console

    Console(highlight=False).print(what, markup=False)


def print_error(message, name=NAME):
    """Prints a message of a program to where errors go."""
    lines = f"{name}: {message}".splitlines()
    if sys.stderr.isatty():
        # A terminal breaks lines wherever it is full.
        width = shutil.get_terminal_size().columns
        lines = [
            textwrap.fill(
                line, width, break_long_words=False, break_on_hyphens=False
            )
            for line in lines
        ]
    print("\n".join(lines), file=sys.stderr)


@contextlib.contextmanager
def mendable(code=ExitCode.INPUT):
    """Inside, what the library says of its arguments is for the user."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise CommandError(str(error), code) from error
