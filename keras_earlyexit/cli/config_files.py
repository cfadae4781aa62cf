"""What `--config` brings: the options of a command from a TOML file.

A key is the name of an option without its dashes. Plain keys are for every
command that has such an option; those in a table such as `[train]` for that
command, and count more. What stands on the command line counts most.
"""

import difflib
import tomllib

from keras_earlyexit.cli.shared import CommandError, ExitCode

_MAX_BYTES = 1 << 20


def read(path, command, known):
    """The options that a file has for a command.

    Args:
        path: The file.
        command: Name of the command.
        known: Dict from the name of every command to the names of its
            options, with underscores.

    Returns:
        Dict of values by name of the option.

    Raises:
        CommandError: If it cannot be read, or names what there is not.
    """
    content = _parse(path)
    tables = {
        name: content.pop(name)
        for name in list(content)
        if name in known and isinstance(content[name], dict)
    }
    everywhere = set().union(*known.values())
    found = _named(path, "", content, everywhere, (known[command], known))
    for name, table in tables.items():
        options = _named(path, f"[{name}] ", table, known[name], ())
        if name == command:
            found |= options
    return {
        name: _as_given(value)
        for name, value in found.items()
        if name in known[command]
    }


def _parse(path):
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise CommandError(
            f"Expected a file with settings. Received: '{path}' "
            f"({error.strerror}).",
            ExitCode.INPUT,
        ) from error
    try:
        if len(text) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES} bytes")
        return tomllib.loads(text.decode("utf-8"))
    except ValueError as error:
        raise CommandError(
            f"Expected a file in TOML. Received: '{path}' ({error}).",
            ExitCode.INPUT,
        ) from error


def _named(path, place, values, options, likelier):
    found = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in options or isinstance(value, dict):
            hint = _hint(key, (*likelier, options))
            raise CommandError(
                f"Expected names of options in '{path}'. Received: "
                f"{place}{key!r}, which there is not. {hint}",
                ExitCode.USAGE,
            )
        found[name] = value
    return found


def _hint(key, groups):
    """The nearest name, of the first group of names that has one."""
    for group in groups:
        names = sorted(name.replace("_", "-") for name in group)
        for close in difflib.get_close_matches(key, names, n=1):
            return f"Did you mean {close!r}?"
    return f"There are: {', '.join(names)}."


def _as_given(value):
    """A value as if it stood on the command line."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return value if isinstance(value, bool) else str(value)
