"""Feeds the decoder of tensors with inputs that nobody would send.

    python tests/fuzz/fuzz_tensors.py --runs 1000000
    python tests/fuzz/fuzz_tensors.py --runs 1000000 --engine atheris

An input is a request whose bytes were damaged, or an honest tensor with some
fields changed. The decoder may raise a `WireError` and nothing else, and what
it returns has to be what the model takes. `random` makes inputs from a seed;
`atheris` (pip install atheris) looks for inputs that reach new lines of code.
"""

import argparse
import collections
import importlib
import pathlib
import sys
import tempfile
import time

import numpy as np
from google.protobuf.message import DecodeError

try:
    import atheris
except ModuleNotFoundError:
    atheris = None

from protos import affine, split_pb2, tensors
from protos.codecs import NAMES
from protos.errors import WireError
from protos.identity import Feature
from protos.limits import Limits

ROWS = 8
SPECS = (
    Feature("feature", (None, 4, 4, 2), "float32"),
    Feature("carry", (None, None, 3), "float32"),
    Feature("image", (None, 4, 4), "uint8"),
    Feature("flags", (None, 2), "bool"),
    Feature("ids", (None,), "uint16"),
)
LIMITS = Limits(max_rows=ROWS, max_message_bytes=1 << 16)
# What is close to where a decision changes.
_NUMBERS = (0, 1, 2, 3, 4, 7, 8, 9, 32, 255, 256)
_NUMBERS += (1 << 31, (1 << 32) - 1, 1 << 32, 1 << 62, (1 << 64) - 1)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-38, 1e38, 3.4e38, -3.4e38)
_FLOATS += (float("nan"), float("inf"), float("-inf"))


def _honest_messages():
    rng = np.random.default_rng(0)
    arrays = [
        rng.normal(size=(2, 4, 4, 2)).astype(np.float32),
        rng.normal(size=(2, 5, 3)).astype(np.float32),
        rng.integers(0, 4, (2, 4, 4)).astype(np.uint8),
        rng.integers(0, 2, (2, 2)).astype(bool),
        rng.integers(0, 9, 2).astype(np.uint16),
    ]
    return {
        spec: [tensors.encode(array, name) for name in NAMES]
        for spec, array in zip(SPECS, arrays, strict=True)
    }


HONEST = _honest_messages()


class _Reader:
    """Choices that are made by bytes; zeros where they are at an end."""

    def __init__(self, data):
        self._data = data
        self._at = 0

    def byte(self):
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def pick(self, choices):
        return choices[self.byte() % len(choices)]

    def number(self):
        if self.byte() % 2:
            return self.pick(_NUMBERS)
        return int.from_bytes(self.bytes(self.byte() % 9), "little")

    def float32(self):
        if self.byte() % 2:
            return self.pick(_FLOATS)
        bits = self.number() & 0xFFFFFFFF
        return float(np.uint32(bits).view(np.float32))

    def bytes(self, size):
        start = min(self._at, len(self._data))
        self._at += size
        return bytes(self._data[start : start + size])


def requests_of(data):
    """The tensors that an input stands for, each with a spec, or `None`."""
    reader = _Reader(data)
    if reader.byte() % 4 == 0:
        try:
            request = split_pb2.InferRequest.FromString(bytes(data[1:]))
        except DecodeError:
            return None
        count = len(request.tensors)
        return list(request.tensors), SPECS[:count] or SPECS[:1]
    spec = reader.pick(SPECS)
    message = split_pb2.Tensor()
    message.CopyFrom(reader.pick(HONEST[spec]))
    for _ in range(1 + reader.byte() % 3):
        _change(message, reader)
    return [message], (spec,)


def _change(message, reader):
    """Changes one field, as bytes choose."""
    field = reader.byte() % 7
    if field == 0:
        message.dtype = reader.byte() % 16 - 4
    elif field == 1:
        message.compression = reader.byte() % 4 - 1
    elif field == 2 and message.shape:
        place = reader.byte() % len(message.shape)
        message.shape[place] = reader.number()
    elif field == 3:
        del message.shape[:]
        message.shape.extend(reader.number() for _ in range(reader.byte() % 9))
    elif field == 4:
        message.data = _damaged(message.data, reader)
    else:
        values = message.scale if field == 5 else message.offset
        kept = list(values)[: reader.byte() % 4]
        del values[:]
        values.extend(kept)
        values.extend(reader.float32() for _ in range(reader.byte() % 4))


def _damaged(data, reader):
    kind = reader.byte() % 4
    if kind == 0:
        return reader.bytes(reader.byte())
    if kind == 1:
        return data[: reader.byte()]
    if kind == 2:
        return data + reader.bytes(1 + reader.byte() % 4)
    data = bytearray(data)
    for _ in range(1 + reader.byte() % 4):
        if data:
            data[reader.number() % len(data)] = reader.byte()
    return bytes(data)


def check(data):
    """Feeds one input to the decoder.

    Args:
        data: Any bytes.

    Returns:
        What became of it: `"no message"`, `"refused"` or `"accepted"`.

    Raises:
        AssertionError: If something was accepted that should not have been;
            anything else that the decoder raises comes through, too.
    """
    request = requests_of(data)
    if request is None:
        return "no message"
    messages, specs = request
    try:
        arrays = tensors.decode_all(messages, specs, LIMITS)
    except WireError:
        return "refused"
    for array, spec in zip(arrays, specs, strict=True):
        sizes = zip(spec.shape[1:], array.shape[1:], strict=True)
        assert array.dtype == spec.dtype
        assert 1 <= len(array) <= ROWS
        assert all(wanted in (None, size) for wanted, size in sizes)
        assert np.isfinite(array).all()
    return "accepted"


def random_inputs(seed):
    """Inputs without end, the same for the same seed."""
    rng = np.random.default_rng(seed)
    requests = [
        split_pb2.InferRequest(
            tensors=[HONEST[spec][i] for spec in SPECS[:count]]
        ).SerializeToString()
        for i in range(len(NAMES))
        for count in range(1, len(SPECS) + 1)
    ]
    while True:
        # In blocks: a call of the generator costs more than its bytes.
        noise = rng.bytes(1 << 16)
        for start in range(0, len(noise), 64):
            block = noise[start : start + 64]
            if block[0] % 4:
                yield block
                continue
            request = bytearray(requests[block[1] % len(requests)])
            for place in range(block[2] % 8):
                choice = block[3 + 4 * place : 7 + 4 * place]
                where = int.from_bytes(choice[:2], "little") % len(request)
                request[where] = choice[2]
            if block[63] % 4 == 0:
                del request[block[62] * len(request) // 256 :]
            yield b"\0" + bytes(request)


def run_random(runs, seed, seconds=float("inf")):
    """Checks random inputs; returns how many became what."""
    outcomes = collections.Counter()
    end = time.monotonic() + seconds
    for number, data in enumerate(random_inputs(seed)):
        if number == runs or number % 256 == 0 and time.monotonic() > end:
            return outcomes
        try:
            outcomes[check(data)] += 1
        except BaseException:
            print(f"seed {seed}, input {number}: {data.hex()}")
            raise


def _check_only(data):
    # What is returned would be taken for a verdict on the input.
    check(data)


def _run_atheris(runs, seed):
    with atheris.instrument_imports():
        for module in (affine, tensors):
            importlib.reload(module)
    with tempfile.TemporaryDirectory() as folder:
        inputs = random_inputs(seed)
        for number in range(256):
            pathlib.Path(folder, str(number)).write_bytes(next(inputs))
        options = [f"-atheris_runs={runs}", f"-seed={seed}", "-max_len=2048"]
        atheris.Setup([sys.argv[0], *options, folder], _check_only)
        # It ends the process itself, and says how long it took.
        atheris.Fuzz()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--engine", choices=("random", "atheris"), default="random"
    )
    options = parser.parse_args()
    if options.engine == "atheris":
        if atheris is None:
            parser.error("atheris is missing: pip install atheris")
        _run_atheris(options.runs, options.seed)
    start = time.monotonic()
    outcomes = run_random(options.runs, options.seed)
    seconds = time.monotonic() - start
    print(f"{options.runs} inputs in {seconds:.0f} s: {dict(outcomes)}")


if __name__ == "__main__":
    main()
