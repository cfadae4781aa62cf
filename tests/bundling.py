"""A small model, and the formats that its bundles can have here."""

import importlib.util

import keras
import numpy as np

import keras_earlyexit as ee

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
HAS_ONNX = all(
    importlib.util.find_spec(name) for name in ("onnxruntime", "tf2onnx")
)
FORMATS = [
    "keras",
    *(("litert", "saved_model") if ON_TENSORFLOW else ()),
    *(("onnx",) if ON_TENSORFLOW and HAS_ONNX else ()),
]


def make_model(units=4, **options):
    """Dense layers with three exits; about a third leaves at each."""
    row = keras.Input((6,), name="row")
    x = row
    for i in range(3):
        x = keras.layers.Dense(8, activation="tanh", name=f"dense_{i}")(x)
    outputs = keras.layers.Dense(units, activation="softmax", name="head")(x)
    options = {"policy": "max_probability", **options}
    plain = keras.Model(row, outputs, name="small")
    return ee.add_exits(plain, ["dense_0", "dense_1"], **options)


def set_thresholds(model, x):
    """Thresholds by which some samples leave at each exit, none by a hair."""
    answers = model(x)
    values = []
    waiting = np.ones(len(x), bool)
    for name in model.exit_names[:-1]:
        prediction = keras.ops.convert_to_numpy(answers[name])
        score = np.sort(prediction.max(axis=-1)[waiting])
        middle = len(score) // 2
        values.append(float(score[middle - 1 : middle + 1].mean()))
        waiting &= prediction.max(axis=-1) <= values[-1]
    model.policy.threshold = values
