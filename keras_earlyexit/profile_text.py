"""A device's profile as JSON, as a file, and as a table."""

import json
import os
import pathlib
import secrets

from keras_earlyexit.measured import Machine, Timing

FORMAT = "keras_earlyexit device profile"
#: Raised when a reader of the version before would be misled.
VERSION = 1
MAX_BYTES = 2**22
_FIELDS = {
    "name",
    "batch_sizes",
    "stages",
    "exits",
    "plain",
    "peak_bytes",
    "machine",
}


def render(fields):
    """The JSON text of a profile.

    Args:
        fields: The fields of a `DeviceProfile`, a dict of plain values.
    """
    content = {"format": FORMAT, "version": VERSION, **fields}
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def parse(content):
    """Reads the JSON text of a profile.

    Args:
        content: Text or bytes.

    Returns:
        Dict of the fields of a `DeviceProfile`, which checks their values.

    Raises:
        TypeError, ValueError: If it is too large or no JSON, of another
            format or version, or if a field is missing or unknown.
    """
    if not isinstance(content, (str, bytes)):
        raise TypeError(
            "Expected JSON text or bytes. Received: "
            f"{type(content).__name__}. To read a file use "
            "`DeviceProfile.load(path)`."
        )
    if len(content) > MAX_BYTES:
        raise ValueError(
            f"Expected a profile of at most {MAX_BYTES} bytes. Received: "
            f"{len(content)}."
        )
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            "Expected a profile in JSON. Received: "
            f"{len(content)} characters that are none ({error}). Write one "
            "with `profile.save(path)`."
        ) from error
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
        raise ValueError(
            f"Expected JSON of format {FORMAT!r}. Received: "
            f"{_shown(found)}. Write it with `profile.save(path)`."
        )
    version = found.pop("version", None)
    if type(version) is not int or version != VERSION:
        raise ValueError(
            f"Expected a profile of version {VERSION}. Received: version "
            f"{_shown(version)}. Profile the device with this version of "
            "keras_earlyexit."
        )
    _check_names("the profile", found, _FIELDS)
    for name in ("stages", "exits"):
        found[name] = [
            _made(Timing, name, value) for value in _each(found, name)
        ]
    if found["plain"] is not None:
        found["plain"] = _made(Timing, "plain", found["plain"])
    if found["machine"] is not None:
        found["machine"] = _made(Machine, "machine", found["machine"])
    return found


def write(path, content):
    """Writes a text file, whole or not at all."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path):
    """The bytes of a file, but not many more than a profile may have."""
    with open(path, "rb") as file:
        return file.read(MAX_BYTES + 1)


def table(profile):
    """A profile as an aligned table: milliseconds for a batch, medians.

    Args:
        profile: A `DeviceProfile`.
    """
    rows = [("samples in a batch", profile.batch_sizes, "d")]
    rows += [(f"stage {x.name}", _ms(x.seconds), ".3f") for x in profile.stages]
    rows += [(f"up to {x.name}", _ms(x.seconds), ".3f") for x in profile.exits]
    if profile.exits:
        routing = [profile.routing_seconds(x) for x in profile.batch_sizes]
        rows.append(("routing itself", _ms(routing), ".3f"))
    if profile.plain is not None:
        rows.append(("plain model", _ms(profile.plain.seconds), ".3f"))
        if profile.plain.joules is not None:
            joules = profile.plain.joules
            rows.append(("plain model, joules", joules, ".4f"))
    if profile.peak_bytes is not None:
        mebibytes = [size / 2**20 for size in profile.peak_bytes]
        rows.append(("peak memory, MiB", mebibytes, ".0f"))
    rows = [(name, *(f"{x:{form}}" for x in xs)) for name, xs, form in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [
                cell.rjust(width)
                for cell, width in zip(row[1:], widths[1:], strict=True)
            ]
        )
        for row in rows
    ]
    where = ""
    if profile.machine is not None:
        machine = profile.machine
        where = f" on {machine.processor} ({machine.backend}, {machine.device})"
    return "\n".join([f"{profile.name}{where}, milliseconds:", *lines])


def _ms(seconds):
    return [1000 * value for value in seconds]


def _each(found, name):
    if not isinstance(found[name], list):
        raise TypeError(
            f"Expected '{name}' to be a list. Received: {_shown(found[name])}."
        )
    return found[name]


def _made(kind, where, value):
    """A value object from a JSON object with exactly its fields."""
    if not isinstance(value, dict):
        raise TypeError(
            f"Expected '{where}' to be a JSON object. Received: "
            f"{_shown(value)}."
        )
    _check_names(f"'{where}'", value, set(kind.__dataclass_fields__))
    return kind(**value)


def _check_names(where, found, wanted):
    if set(found) != wanted:
        raise ValueError(
            f"Expected {where} to have the keys {sorted(wanted)}. Received: "
            f"{_shown(sorted(found))}."
        )


def _shown(value):
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return f"{shown} (of type {type(value).__name__})"
