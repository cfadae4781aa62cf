"""Logs are lines of JSON."""

import io
import json
import logging

import numpy as np
import pytest

from cloud_worker import logs


@pytest.fixture
def stream():
    return io.StringIO()


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_the_fields_it_was_given(stream):
    logs.configure("info", stream)
    values = {
        "rows": np.int64(3),
        "seconds": np.float32("nan"),
        "path": ValueError("a\nb"),
        "counts": np.arange(2),
    }
    logs.logger.info("answered", extra=logs.fields(**values))
    (line,) = lines(stream)
    assert line["message"] == "answered" and line["level"] == "info"
    assert line["time"].endswith("+00:00")
    found = [line[name] for name in values]
    assert found == [3, "nan", "a\nb", [0, 1]]


def test_an_exception_stays_on_its_line(stream):
    logs.configure("info", stream)
    try:
        raise RuntimeError("one\ntwo")
    except RuntimeError as error:
        logs.logger.error("call failed", exc_info=error)
    (line,) = lines(stream)
    assert "RuntimeError: one\ntwo" in line["exception"]


def test_levels(stream):
    logs.configure("warning", stream)
    logs.logger.info("request")
    logs.logger.warning("careful")
    # What programs wait for comes at every level.
    logs.start_logger.info("listening on 127.0.0.1:1")
    logging.getLogger("another").info("not ours")
    logging.getLogger("another").warning("not ours either")
    found = [line["message"] for line in lines(stream)]
    assert found == [
        *("careful", "listening on 127.0.0.1:1", "not ours either"),
    ]


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31m", "\u2028", '"}'])
def test_nobody_can_forge_a_line(text, stream):
    logs.configure("info", stream)
    logs.logger.info("request", extra=logs.fields(request_id=text))
    written = stream.getvalue()
    assert written.count("\n") == 1 and written.isascii()
    assert lines(stream)[0]["request_id"] == text
