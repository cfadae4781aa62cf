"""What `edge-worker doctor` sends to try a link."""

import types

import pytest

from edge_worker.examining import _samples
from keras_earlyexit.bundle.specs import TensorSpec, fit_inputs


@pytest.mark.parametrize("dtype", ["string", "float32", "int32", "uint8"])
@pytest.mark.parametrize("shape", [(None, 1), (None, None, 3)])
def test_samples_fit_any_input(dtype, shape):
    spec = TensorSpec("x", shape, dtype)
    stage = types.SimpleNamespace(inputs=[spec])
    manifest = types.SimpleNamespace(stages=[stage])
    samples = _samples(types.SimpleNamespace(manifest=manifest))
    (array,) = fit_inputs(samples, [spec], "tensor")
    assert len(array) == 64 and array.dtype == (
        object if dtype == "string" else dtype
    )
