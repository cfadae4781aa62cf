"""Bundles run without Keras and TensorFlow."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from bundling import FORMATS

PROGRAM = """
import sys
import numpy as np
import keras_earlyexit as ee
x = np.load(sys.argv[2], allow_pickle=False)
np.save(sys.argv[3], ee.load_bundle(sys.argv[1]).predict_exits(x).predictions)
print([m for m in ("keras", "tensorflow", "scipy") if m in sys.modules])
"""


@pytest.mark.parametrize(
    "format, tool",
    [
        ("litert", "ai_edge_litert"),
        ("onnx", "onnxruntime"),
    ],
)
def test_answers_without_keras(format, tool, small, rows, bundle_in, tmp_path):
    if format not in FORMATS or importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is missing, or this is another backend")
    np.save(tmp_path / "x.npy", rows)
    child = subprocess.run(
        [
            *(sys.executable, "-c", PROGRAM, bundle_in(format)),
            *(tmp_path / "x.npy", tmp_path / "y.npy"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.split("\n")[0] == "[]"
    np.testing.assert_allclose(
        np.load(tmp_path / "y.npy", allow_pickle=False),
        small.predict(rows, verbose=0),
        atol=1e-5,
    )
