"""Runs stages in LiteRT, with `ai-edge-litert` or with TensorFlow's own.

Changing an interpreter's number of rows takes microseconds (measured: 5 to 10),
so none are kept for other sizes. An interpreter serves one caller at a time: a
stage makes a further one when all are busy, as many as it may have.
"""

import threading
import warnings

import numpy as np

from keras_earlyexit.bundle.specs import BundleError


class LiteRTStage:
    """A stage in a LiteRT file: a tuple of arrays -> dict of arrays by name.

    Args:
        entry: The manifest's `StageEntry`.
        content: Bytes of the file.
        num_threads: Threads for one call; `None`: LiteRT's default, one.
        num_calls: Calls at the same time; more wait. Each has the memory of
            an interpreter, from the first time on that there are so many.

    Raises:
        BundleError: If the file is not what the manifest says.
    """

    def __init__(self, entry, content, num_threads=None, num_calls=1):
        self._made_of = entry, content, num_threads
        self._num_calls = num_calls
        self._interpreters = [_Interpreter(*self._made_of)]
        self._growing = threading.Lock()

    def __call__(self, arrays):
        interpreter = self._free()
        try:
            return interpreter.run(arrays)
        finally:
            interpreter.lock.release()

    def _free(self):
        """An interpreter that is not in use, whose lock has been taken."""
        found = self._first_free() or self._another()
        if found is None:
            found = self._interpreters[0]
            found.lock.acquire()
        return found

    def _first_free(self):
        # The first is used most, and what it needs is in the caches.
        for interpreter in self._interpreters:
            if interpreter.lock.acquire(blocking=False):
                return interpreter
        return None

    def _another(self):
        with self._growing:
            if len(self._interpreters) == self._num_calls:
                return None
            made = _Interpreter(*self._made_of)
            made.lock.acquire()
            self._interpreters.append(made)
            return made


class _Interpreter:
    """An interpreter, and the lock of whoever uses it."""

    def __init__(self, entry, content, num_threads):
        self.lock = threading.Lock()
        self._interpreter = _interpreter(content, num_threads, entry.path)
        self._inputs, self._outputs = _tensors(self._interpreter, entry)
        self._shapes = None

    def run(self, arrays):
        interpreter = self._interpreter
        shapes = [array.shape for array in arrays]
        if shapes != self._shapes:
            self._resize(shapes)
        for index, array in zip(self._inputs, arrays, strict=True):
            interpreter.set_tensor(index, array)
        interpreter.invoke()
        return {
            name: interpreter.get_tensor(index)
            for name, index in self._outputs.items()
        }

    def _resize(self, shapes):
        self._shapes = None
        for index, shape in zip(self._inputs, shapes, strict=True):
            self._interpreter.resize_tensor_input(index, shape)
        self._interpreter.allocate_tensors()
        self._shapes = shapes


def _interpreter(content, num_threads, path):
    interpreter_class = _interpreter_class()
    try:
        with warnings.catch_warnings():
            # TensorFlow's own is used only where there is no other.
            warnings.filterwarnings(
                "ignore", message=r"\s*Warning: tf.lite.Interpreter"
            )
            return interpreter_class(
                model_content=content, num_threads=num_threads
            )
    except (ValueError, RuntimeError) as error:
        raise BundleError(
            f"Expected '{path}' to be a LiteRT file. Received: {len(content)} "
            f"bytes that LiteRT refuses ({error}). Export the bundle again."
        ) from error


def _interpreter_class():
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            import tensorflow as tf
        except ImportError as error:
            raise ImportError(
                "Expected LiteRT to run a bundle of format 'litert'. "
                "Received: an environment with neither ai-edge-litert nor "
                "TensorFlow. Install one: pip install ai-edge-litert"
            ) from error
        return tf.lite.Interpreter
    return Interpreter


def _tensors(interpreter, entry):
    """Indices of a file's inputs, in order, and of its outputs, by name."""
    try:
        # Anything left of it would forbid the interpreter to resize.
        runner = interpreter.get_signature_runner()
        inputs = {k: v["index"] for k, v in runner.get_input_details().items()}
        outputs = {
            k: v["index"] for k, v in runner.get_output_details().items()
        }
    except ValueError as error:
        raise BundleError(
            f"Expected '{entry.path}' to have one signature. Received: a "
            f"LiteRT file without ({error}). Export the bundle again."
        ) from error
    del runner
    details = {
        detail["index"]: detail
        for detail in [
            *interpreter.get_input_details(),
            *interpreter.get_output_details(),
        ]
    }
    wanted = {f"input_{i}": spec for i, spec in enumerate(entry.inputs)}
    _compare(wanted, inputs, details, entry.path)
    _compare({s.name: s for s in entry.outputs}, outputs, details, entry.path)
    return [inputs[name] for name in wanted], outputs


def _compare(wanted, found, details, path):
    """Refuses a file whose tensors are not those of the manifest."""
    if set(wanted) != set(found):
        raise BundleError(
            f"Expected '{path}' to have the tensors {sorted(wanted)}. "
            f"Received: a LiteRT file with {sorted(found)}."
        )
    for name, spec in wanted.items():
        detail = details[found[name]]
        dtype = np.dtype(detail["dtype"]).name
        shape = [None if x < 0 else int(x) for x in detail["shape_signature"]]
        # What a file says of its outputs' shapes may be less exact.
        if dtype != spec.dtype or (
            name.startswith("input_") and shape != list(spec.shape)
        ):
            raise BundleError(
                f"Expected tensor '{name}' of '{path}' to be {spec.dtype} of "
                f"shape {spec.shape}. Received: {dtype} of shape "
                f"{tuple(shape)}."
            )
