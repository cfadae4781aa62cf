"""What a request holds and what is answered, whatever it came over."""

import json
import sys
import threading
import time

import numpy as np

from edge_worker.inputs import as_answers, as_array

MAX_ROWS = 1024


class BadRequest(ValueError):
    """A request that holds no samples for the model."""


def read_inputs(body, specs):
    """The samples of a JSON request.

    Args:
        body: Bytes of an object with `inputs`: a list of samples, or an
            object with one for each input by name.
        specs: The `TensorSpec` of every input of the model.

    Returns:
        Dict name -> array.

    Raises:
        BadRequest: If it does not fit.
    """
    try:
        content = json.loads(body)["inputs"]
        if not isinstance(content, dict):
            if len(specs) > 1:
                raise ValueError("an object with every input is needed")
            content = {specs[0].name: content}
        arrays = {
            spec.name: as_array(content[spec.name], spec, batched=True)
            for spec in specs
        }
        rows = {len(array) for array in arrays.values()}
        if len(rows) > 1 or not 1 <= min(rows) <= MAX_ROWS:
            raise ValueError(f"{sorted(rows)} rows, not 1 to {MAX_ROWS}")
        return arrays
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        wanted = [(spec.name, spec.shape, spec.dtype) for spec in specs]
        raise BadRequest(
            f'Expected {{"inputs": ...}} for {wanted}. Received: '
            f"{len(body)} bytes without ({type(error).__name__}: {error})."
        ) from error


def render(result, class_names):
    """The bytes of a JSON answer for a `SplitResult`."""
    return json.dumps({"answers": as_answers(result, class_names)}).encode()


class RequestLog:
    """Writes a line of JSON for each request.

    Args:
        stream: Where to.
    """

    def __init__(self, stream=sys.stdout):
        self._stream = stream
        self._lock = threading.Lock()

    def write(self, message, **fields):
        """Writes a line with a time, a message and what else there is."""
        line = {"time": round(time.time(), 3), "message": message, **fields}
        # Two threads' lines must not run into each other.
        with self._lock:
            print(json.dumps(line), file=self._stream, flush=True)

    def answered(self, how, code, started, result=None):
        """Writes what became of a request."""
        facts = {}
        if result is not None:
            facts = {
                "rows": len(result),
                "answered_by": result.counts,
                "exits": np.bincount(result.exit_index).tolist(),
                "bytes_up": result.bytes_up,
                "bytes_down": result.bytes_down,
            }
        ms = round(1e3 * (time.monotonic() - started), 3)
        self.write("request", how=how, code=code, ms=ms, **facts)
