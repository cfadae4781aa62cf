"""A plan as JSON, as a table, and in words."""

from keras_earlyexit import json_values
from keras_earlyexit.cost.measured import Link

FORMAT = "keras_earlyexit plan"
#: Raised when a reader of the version before would be misled.
VERSION = 1
# A plain model has dozens of cuts; a table shows the best ones.
_MOST_ROWS = 16
_UNCUT = {"edge": "edge alone", "cloud": "cloud alone"}


def render(fields):
    """The JSON text of a plan.

    Args:
        fields: The fields of a `Plan`, a dict of plain values.
    """
    return json_values.render(fields, FORMAT, VERSION)


def parse(content, plan, row):
    """Reads the JSON text of a plan.

    Args:
        content: Text or bytes.
        plan: The class `Plan`.
        row: The class `PlanRow`.

    Returns:
        Dict of the fields of a `Plan`, which checks their values.

    Raises:
        TypeError, ValueError: If it is too large or no JSON, of another
            format or version, or if a field is missing or unknown.
    """
    found = json_values.parse(content, FORMAT, VERSION, "plan", "Plan")
    json_values.check_names("the plan", found, set(plan.__dataclass_fields__))
    found["rows"] = [
        json_values.made(row, "rows", value)
        for value in json_values.each(found, "rows")
    ]
    found["link"] = json_values.made(Link, "link", found["link"])
    return found


def label(row):
    """What a row is called in tables and pictures."""
    if row.way == "split_learning":
        return f"{row.name} (split)"
    return _UNCUT.get(row.way, row.name)


def why(plan, row):
    """Why a row is or is not the best cut, as text."""
    if not plan.fits(row):
        return (
            f"needs {num_bytes(row.edge_bytes)} at the edge, "
            f"{num_bytes(plan.memory_limit)} are allowed"
        )
    best = plan.best
    if best is None:
        return "fits"
    if row == best:
        return "the best cut"
    if plan.objective == "bytes":
        return _bytes_over(row, best)
    if row.seconds == best.seconds:
        return f"as long, {_bytes_over(row, best)}"
    parts = {
        "edge": row.edge_seconds,
        "link": row.link_seconds,
        "cloud": row.cloud_seconds,
    }
    share = parts[row.bottleneck] / (sum(parts.values()) or 1.0)
    mostly = f"mostly {row.bottleneck} ({share:.0%})"
    if share == 1:
        mostly = f"all {row.bottleneck}"
    return f"{_times(row.seconds, best.seconds)} as long; {mostly}"


def _bytes_over(row, best):
    if row.num_bytes == best.num_bytes:
        same = "as many bytes"
        if row.seconds == best.seconds:
            return same
        return f"{same}, {_times(row.seconds, best.seconds)} as long"
    return f"{_times(row.num_bytes, best.num_bytes)} the bytes"


def _times(one, other):
    return f"{one / other:.2f} times" if other else "infinitely"


def advice(plan):
    """What to do, as one sentence."""
    best, choice = plan.best, plan.choice
    if choice is None:
        least = min(row.edge_bytes for row in plan.rows)
        return (
            f"Nothing fits: {num_bytes(plan.memory_limit)} are allowed at the "
            f"edge, and {num_bytes(least)} is the least that is needed."
        )
    figure = _figures(plan, choice)
    if choice.way == "cut":
        return f"Cut at {choice.name}: {figure}."
    if choice.way == "split_learning":
        return f"Cut at {choice.name} and send gradients back: {figure}."
    other = "no cut fits the memory"
    if best is not None:
        other = f"the best cut, {best.name}, takes {_figures(plan, best)}"
    raw = ", to which raw inputs go" if choice.way == "cloud" else ""
    return f"Do not cut, take the {_UNCUT[choice.way]}{raw}: {figure}; {other}."


def _figures(plan, row):
    each = "sample" if plan.mode == "infer" else "batch"
    return f"{seconds(row.seconds)} and {num_bytes(row.num_bytes)} a {each}"


def figures(plan):
    """Titles and rows of a table of what is predicted, text each.

    Titles that start with `>` are of columns that are set right.
    """
    titles = [*("cut at", ">time", ">edge", ">link", ">cloud"), ">bytes"]
    rows = [
        [
            f"{_mark(plan, row)} {label(row)}",
            seconds(row.seconds),
            seconds(row.edge_seconds),
            seconds(row.link_seconds),
            seconds(row.cloud_seconds),
            num_bytes(row.num_bytes),
            num_bytes(row.edge_bytes),
        ]
        for row in shown(plan)
    ]
    return [*titles, ">memory"], rows


def reasons(plan):
    """Titles and rows of a table of what speaks for and against each row."""
    titles, rows = ["cut at"], []
    epochs = plan.rows[0].epoch_seconds is not None
    for row in shown(plan):
        cells = [f"{_mark(plan, row)} {label(row)}"]
        if epochs:
            cells.append(seconds(row.epoch_seconds or 0.0))
        rows.append([*cells, why(plan, row)])
    return [*titles, *([">epoch"] if epochs else []), "why"], rows


def _mark(plan, row):
    if row == plan.best:
        return "*"
    return "!" if row == plan.choice else " "


def shown(plan):
    """The rows that tables and pictures have: cuts, then references."""
    cuts = sorted(
        plan.cuts, key=lambda row: (not plan.fits(row), plan.worth(row))
    )
    kept = set(cuts[:_MOST_ROWS])
    at = cuts[0].name if cuts else None
    return [
        *(row for row in plan.cuts if row in kept),
        *(
            row
            for row in plan.references
            if row.way != "split_learning" or row.name == at
        ),
    ]


def title(plan):
    """What a plan is of, as a line."""
    link = plan.link
    what = "answer with" if plan.mode == "infer" else "train"
    return (
        f"Where to cut {plan.model!r} to {what} it, batches of "
        f"{plan.batch_size}, link {link.bits_per_second / 1e6:g} Mbit/s, "
        f"round trip {seconds(link.round_trip_seconds)}"
    )


def remarks(plan):
    """Sentences below a table: what is marked, what figures rest on."""
    each = "sample" if plan.mode == "infer" else "batch"
    hidden = len(plan.cuts) - sum(row.way == "cut" for row in shown(plan))
    found = [
        plan.advice,
        f"Time and bytes are for a {each}, memory is the edge's; * is the best "
        "cut, ! is better still.",
    ]
    if plan.mode == "train":
        found.append("(split): classic split learning, gradients come back.")
    if hidden:
        found.append(f"{hidden} worse cuts are not shown.")
    return [*found, *plan.notes]


def table(plan):
    """A plan as an aligned table, and what is to be said of it."""
    titles, rows = figures(plan)
    more, reasons_ = reasons(plan)
    titles = [*titles, *more[1:]]
    rows = [
        [name.lstrip(">") for name in titles],
        *(
            [*left, *right[1:]]
            for left, right in zip(rows, reasons_, strict=True)
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = [
        "  ".join(
            cell.rjust(width) if name.startswith(">") else cell.ljust(width)
            for name, cell, width in zip(titles, row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
    return "\n".join([title(plan), *text, *remarks(plan)])


def seconds(value):
    """Seconds in a unit that suits them."""
    if value >= 120:
        return f"{value / 60:.3g} min"
    for unit, size in (("s", 1), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return "< 1 us" if value else "0"


def num_bytes(value):
    """Bytes in a unit that suits them."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"
