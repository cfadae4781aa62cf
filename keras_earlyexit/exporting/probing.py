"""Whether what was written answers as the model does."""

import keras
import numpy as np

from keras_earlyexit.exporting import functions
from keras_earlyexit.stages import CROSSING

ROWS = 16
_BATCH = 64
#: Sizes that a model leaves open, for inputs of its own making.
_OPEN_SIZE = 32
TOLERANCE = 1e-4
#: Half precision has 8 bits (bfloat16) for what float32 has 24 for.
HALF_TOLERANCE = 2e-2


def make_inputs(model, rows=ROWS):
    """Random inputs that a model can take, as a tuple in its own order."""
    generator = np.random.default_rng(0)
    limit = _smallest_vocabulary(model)
    return tuple(
        _random(spec, rows, limit, generator)
        for spec in functions.input_specs(model, 0)
    )


def _smallest_vocabulary(model):
    """What whole numbers a model's embeddings take; 2 where it has none."""
    sizes = [
        call.operation.input_dim
        for call in model.exit_graph.graph.calls
        if isinstance(call.operation, keras.layers.Embedding)
    ]
    return min(sizes, default=2)


def _random(spec, rows, limit, generator):
    shape = (rows, *(size or _OPEN_SIZE for size in spec.shape[1:]))
    if spec.dtype == "string":
        return generator.choice(np.array(["a", "b c"], object), shape)
    if spec.dtype == "uint8":
        return generator.integers(0, 256, shape).astype("uint8")
    if spec.dtype.startswith("float"):
        return generator.normal(size=shape).astype(spec.dtype)
    high = 2 if spec.dtype == "bool" else limit
    return generator.integers(0, high, shape).astype(spec.dtype)


def reference(model, inputs):
    """Every exit's answers by the model's own stages.

    Args:
        model: An `EarlyExitModel`.
        inputs: Tuple of arrays, in the order of the model's inputs.

    Returns:
        Dict of arrays as `Bundle.all_exits` gives it, without `feature` and
        `carry`.
    """
    return _batch_by_batch(lambda batch: run_stages(model, batch)[0], inputs)


def stage_inputs(model, inputs):
    """What every stage is given for some samples: E + 1 tuples of arrays."""
    return run_stages(model, inputs)[1]


def exported(bundles, inputs):
    """Every exit's answers by a chain of bundles, as `reference` gives them."""

    def run(crossing):
        answers = {}
        for bundle in bundles:
            names = [spec.name for spec in bundle.manifest.stages[0].inputs]
            found = bundle.all_exits(dict(zip(names, crossing, strict=True)))
            crossing = [found.pop(key) for key in CROSSING if key in found]
            answers.update(found)
        return answers

    return _batch_by_batch(run, inputs)


def _batch_by_batch(run, inputs):
    parts = [
        run([array[i : i + _BATCH] for array in inputs])
        for i in range(0, len(inputs[0]), _BATCH)
    ]
    return {
        key: np.concatenate([part[key] for part in parts]) for key in parts[0]
    }


def run_stages(model, arrays):
    """Every exit's answers, a dict, and what every stage is given, a list."""
    answers, taken = {}, []
    for name, stage in zip(model.exit_names, model.stages, strict=True):
        taken.append(tuple(arrays))
        inputs = keras.tree.pack_sequence_as(stage.input, list(arrays))
        outputs = stage(inputs, training=False)
        answers[name] = _as_numpy(outputs["prediction"])
        if "score" in outputs:
            answers[f"{name}_score"] = _as_numpy(outputs["score"])
            arrays = [_as_numpy(outputs[k]) for k in CROSSING if k in outputs]
    return answers, taken


def _as_numpy(tensor):
    if keras.backend.standardize_dtype(tensor.dtype) in functions.HALF:
        tensor = keras.ops.cast(tensor, "float32")
    return keras.ops.convert_to_numpy(tensor)


def tolerance(model):
    """How far apart answers may be, over the size of the largest one."""
    half = any(
        getattr(call.operation, "compute_dtype", None) in functions.HALF
        for call in model.exit_graph.graph.calls
    )
    return HALF_TOLERANCE if half else TOLERANCE


def largest_difference(found, wanted):
    """Largest difference of two dicts of answers, over their size.

    Args:
        found, wanted: Dicts of arrays with the same keys.

    Returns:
        `(difference, key)`: max |a - b| / max(1, max |b|) over all keys, and
        where it is.
    """
    worst, where = 0.0, None
    for key, value in wanted.items():
        scale = max(1.0, float(np.max(np.abs(value), initial=0.0)))
        apart = np.abs(found[key].astype("float64") - value)
        difference = float(np.max(apart, initial=0.0)) / scale
        # Written so that NaN counts as the largest.
        if where is None or not difference <= worst:
            worst, where = difference, key
    return worst, where
