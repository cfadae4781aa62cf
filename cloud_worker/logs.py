"""Logs as lines of JSON.

What a line tells is in fields, so that it can be looked for:
`logger.info("answered", extra=fields(request_id=..., rows=...))`.
"""

import datetime
import json
import logging
import math

logger = logging.getLogger("cloud_worker")
#: Says where the worker listens, whatever the level: programs wait for it.
start_logger = logging.getLogger("cloud_worker.start")


def fields(**values):
    """What a line tells besides its message, for a logger's `extra`."""
    return {"fields": values}


def configure(level, stream):
    """Writes everything from a level on to a stream.

    Args:
        level: `"debug"`, `"info"`, `"warning"` or `"error"`.
        stream: Where to.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logger.setLevel(level.upper())
    start_logger.setLevel(logging.INFO)


class JSONLines(logging.Formatter):
    """One JSON object for each record."""

    def format(self, record):
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=_plain)


def _plain(value):
    """What JSON has no form for, such as NumPy's numbers."""
    if hasattr(value, "tolist"):
        value = value.tolist()
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        return value
    return str(value)
