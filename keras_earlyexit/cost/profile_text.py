"""A device's profile as JSON, and as a table."""

from keras_earlyexit import json_values
from keras_earlyexit.cost.measured import Machine, Timing

FORMAT = "keras_earlyexit device profile"
#: Raised when a reader of the version before would be misled.
VERSION = 1
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
    fields = dict(fields)
    # Readers of before know profiles without this.
    if not fields["training"]:
        del fields["training"]
    return json_values.render(fields, FORMAT, VERSION)


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
    found = json_values.parse(
        content, FORMAT, VERSION, "profile", "Profile the device"
    )
    json_values.check_names(
        "the profile", found, _FIELDS | (found.keys() & {"training"})
    )
    found.setdefault("training", [])
    for name in ("stages", "exits", "training"):
        found[name] = [
            json_values.made(Timing, name, value)
            for value in json_values.each(found, name)
        ]
    if found["plain"] is not None:
        found["plain"] = json_values.made(Timing, "plain", found["plain"])
    if found["machine"] is not None:
        found["machine"] = json_values.made(
            Machine, "machine", found["machine"]
        )
    return found


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
    rows += [
        (f"train {x.name}", _ms(x.seconds), ".3f") for x in profile.training
    ]
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
