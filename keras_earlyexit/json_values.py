"""Values as JSON, read from files that may have been written by anyone."""

import json
import os
import pathlib
import secrets

MAX_BYTES = 2**22


def render(fields, form, version):
    """The JSON text of some fields.

    Args:
        fields: A dict of plain values.
        form: The text that says what it is.
        version: Raised when a reader of the version before would be misled.
    """
    content = {"format": form, "version": version, **fields}
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def parse(content, form, version, what, how):
    """Reads JSON text that `render` made.

    Args:
        content: Text or bytes.
        form: As in `render`.
        version: As in `render`.
        what: The thing, for messages, such as `"profile"`.
        how: What makes a new one, for messages.

    Returns:
        Dict of the fields, whose names and values nobody has looked at.

    Raises:
        TypeError, ValueError: If it is too large or no JSON, or of another
            format or version.
    """
    if not isinstance(content, (str, bytes)):
        raise TypeError(
            "Expected JSON text or bytes. Received: "
            f"{type(content).__name__}. To read a file use `load(path)`."
        )
    if len(content) > MAX_BYTES:
        raise ValueError(
            f"Expected a {what} of at most {MAX_BYTES} bytes. Received: "
            f"{len(content)}."
        )
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"Expected a {what} in JSON. Received: "
            f"{len(content)} characters that are none ({error}). Write one "
            f"with `{what}.save(path)`."
        ) from error
    if not isinstance(found, dict) or found.pop("format", None) != form:
        raise ValueError(
            f"Expected JSON of format {form!r}. Received: "
            f"{shown(found)}. Write it with `{what}.save(path)`."
        )
    received = found.pop("version", None)
    if type(received) is not int or received != version:
        raise ValueError(
            f"Expected a {what} of version {version}. Received: version "
            f"{shown(received)}. {how} with this version of keras_earlyexit."
        )
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
    """The bytes of a file, but not many more than one may have."""
    with open(path, "rb") as file:
        return file.read(MAX_BYTES + 1)


class InFile:
    """A value that is kept in a file of JSON, by `to_json` and `from_json`."""

    def save(self, path):
        """Writes it to a JSON file, whole or not at all.

        Args:
            path: Where to; a file that is there is replaced.
        """
        write(path, self.to_json())

    @classmethod
    def load(cls, path):
        """Reads it from a file that `save` wrote.

        Args:
            path: The file.

        Returns:
            What was saved.

        Raises:
            OSError: If there is no such file.
            TypeError, ValueError: As in `from_json`.
        """
        return cls.from_json(read(path))


def each(found, name):
    """The list under a name."""
    if not isinstance(found[name], list):
        raise TypeError(
            f"Expected '{name}' to be a list. Received: {shown(found[name])}."
        )
    return found[name]


def made(kind, where, value):
    """A value object from a JSON object with exactly its fields."""
    if not isinstance(value, dict):
        raise TypeError(
            f"Expected '{where}' to be a JSON object. Received: {shown(value)}."
        )
    check_names(f"'{where}'", value, set(kind.__dataclass_fields__))
    return kind(**value)


def check_names(where, found, wanted):
    """Raises a `ValueError` unless a dict has exactly some keys."""
    if set(found) != wanted:
        raise ValueError(
            f"Expected {where} to have the keys {sorted(wanted)}. Received: "
            f"{shown(sorted(found))}."
        )


def shown(value):
    """A value and its type for messages, not too long."""
    text = repr(value)
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return f"{text} (of type {type(value).__name__})"
