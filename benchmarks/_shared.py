"""What the benchmarks share: parts timed in turn, and the report in JSON."""

import json
import os
import platform
import statistics
import time
from importlib import metadata


def in_turn(parts, runs):
    """Seconds of each part, all parts once in every run.

    Args:
        parts: Dict of functions by name; each is called once before.
        runs: How often.

    Returns:
        Dict of lists of seconds by name.
    """
    for function in parts.values():
        function()
    found = {name: [] for name in parts}
    for _ in range(runs):
        for name, function in parts.items():
            found[name].append(clock(function))
    return found


def clock(function):
    """Seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def ratio(one, other):
    """Median of the ratios, run by run."""
    pairs = zip(one, other, strict=True)
    return statistics.median(a / b for a, b in pairs)


def write_report(path, rows, packages=("keras", "tensorflow"), **facts):
    """Writes rows with what they were measured on; nowhere for no path."""
    if path is None:
        return
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        **facts,
        "rows": rows,
    }
    path.write_text(json.dumps(report, indent=2) + "\n")


def kept_rows(path, settings):
    """Rows of a report of before, if it was written with the same settings."""
    if path is None or not path.exists():
        return []
    report = json.loads(path.read_text(encoding="utf-8"))
    found = {name: report.get(name) for name in settings}
    if found != settings:
        raise SystemExit(
            f"Expected {path} to be of a run with {settings}. Received: one "
            f"with {found}. Give another --output."
        )
    return report["rows"]
