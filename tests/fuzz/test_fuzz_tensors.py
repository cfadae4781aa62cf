"""The decoder of tensors refuses what is wrong, and never breaks."""

import importlib.util
import os
import random
import subprocess
import sys

import pytest
from fuzz import fuzz_tensors
from fuzz.fuzz_tensors import LIMITS, SPECS, check, requests_of, run_random
from hypothesis import given, settings
from hypothesis import strategies as st

from protos import split_pb2, tensors
from protos.errors import WireError

RUNS = 1_000_000


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes(data):
    check(data)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_as_a_request(data):
    check(b"\0" + data)


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=1, max_size=60).map(lambda x: b"\1" + x))
def test_an_honest_message_that_was_changed(data):
    check(data)


def test_ten_seconds():
    seed = random.SystemRandom().randrange(1 << 32)
    outcomes = run_random(RUNS, seed, seconds=10)
    # All kinds of input were there, or it would prove nothing.
    assert min(outcomes[x] for x in ("no message", "refused", "accepted")) > 50


def test_honest_messages_are_accepted():
    for spec, messages in fuzz_tensors.HONEST.items():
        for message in messages:
            (array,) = tensors.decode_all([message], [spec], LIMITS)
            assert len(array) == 2


def test_a_decoder_that_breaks_is_noticed(monkeypatch, capsys):
    def break_(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(tensors, "_unpack", break_)
    with pytest.raises(ZeroDivisionError):
        run_random(1000, seed=0)
    assert "seed 0, input" in capsys.readouterr().out


def test_a_decoder_that_lets_nan_through_is_noticed(monkeypatch):
    monkeypatch.setattr(tensors, "_is_finite_float32", lambda array: True)
    with pytest.raises(AssertionError):
        run_random(200_000, seed=0)


def test_a_request_of_all_tensors():
    messages = [fuzz_tensors.HONEST[spec][0] for spec in SPECS]
    request = split_pb2.InferRequest(tensors=messages)
    data = b"\0" + request.SerializeToString()
    assert check(data) == "accepted"
    assert requests_of(data) == (messages, SPECS)
    with pytest.raises(WireError):
        tensors.decode_all(messages[::-1], SPECS, LIMITS)


@pytest.mark.fuzz
def test_a_million_inputs():
    outcomes = run_random(RUNS, seed=1)
    assert sum(outcomes.values()) == RUNS


@pytest.mark.fuzz
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris is missing: pip install atheris",
)
def test_a_million_inputs_that_look_for_new_lines():
    command = [sys.executable, fuzz_tensors.__file__, f"--runs={RUNS}"]
    child = subprocess.run(
        [*command, "--engine=atheris"],
        capture_output=True,
        text=True,
        timeout=1200,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.returncode == 0, child.stderr[-2000:]
    assert f"Done {RUNS} in" in child.stderr
