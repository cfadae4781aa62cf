"""Keras finds the package's classes, whatever is imported first.

The classes are looked up in new processes, as one import settles the matter
for the rest of a process. They use Keras' NumPy backend, which loads fastest.
"""

import os
import subprocess
import sys

import pytest

# After it: Keras knows the class, and no trace of the waiting is left.
LOOK_UP = """
import inspect, keras, sys
from importlib import resources
from keras_earlyexit import _register

assert not any(type(x) is _register._Watcher for x in sys.meta_path)
for module in _register._MODULES:
    assert f"keras_earlyexit.{module}" in sys.modules, module
found = keras.saving.get_registered_object("keras_earlyexit>ExitBlock")
assert found is not None and found.__name__ == "ExitBlock", found
assert "exec_module" not in vars(keras.__spec__.loader)
assert "import" in inspect.getsource(keras)
assert resources.files("keras").joinpath("__init__.py").is_file()
"""
FIND_ONLY = """
import importlib.util, keras_earlyexit, sys
assert importlib.util.find_spec("keras") and importlib.util.find_spec("keras")
assert "keras" not in sys.modules
from keras import layers
"""
TWO_THREADS = """
import importlib, keras_earlyexit, threading
names = ["keras", "keras_earlyexit.model", "keras"]
threads = [
    threading.Thread(target=importlib.import_module, args=[name])
    for name in names
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
SECOND_TRY = """
import keras_earlyexit, os, sys
os.environ["KERAS_BACKEND"] = "nonsense"
try:
    import keras
    raise SystemExit("Keras took an unknown backend")
except ValueError:
    pass
for name in [name for name in sys.modules if name.split(".")[0] == "keras"]:
    del sys.modules[name]
os.environ["KERAS_BACKEND"] = "numpy"
import keras
"""


def run(code, *options, **environment):
    """Runs Python code in a process of its own; returns what it wrote."""
    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        env={**os.environ, "KERAS_BACKEND": "numpy", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


# Each is a process that loads Keras.
LONG = pytest.mark.long


@pytest.mark.parametrize(
    "imports",
    [
        pytest.param("import keras_earlyexit, keras", id="ours first"),
        pytest.param(
            "import keras, keras_earlyexit", id="Keras first", marks=LONG
        ),
        pytest.param(
            "import keras_earlyexit.surgery", id="a module of ours", marks=LONG
        ),
        pytest.param(
            "import keras_earlyexit as ee; ee.add_exits",
            id="a name",
            marks=LONG,
        ),
        pytest.param(FIND_ONLY, id="only looked for at first", marks=LONG),
        pytest.param(TWO_THREADS, id="two threads at once", marks=LONG),
        pytest.param(SECOND_TRY, id="the first try failed"),
    ],
)
def test_keras_knows_the_classes(imports):
    _, errors = run(imports + LOOK_UP, "-Ximporttime")
    listed = [line.startswith("import time:") for line in errors.splitlines()]
    assert listed and all(listed), errors


def test_keras_that_comes_with_tensorflow_knows_the_classes():
    run(
        "import keras_earlyexit, tensorflow as tf\n"
        "assert issubclass(tf.keras.layers.Dense, tf.keras.layers.Layer)\n"
        + LOOK_UP,
        KERAS_BACKEND="tensorflow",
    )


def test_import_alone_loads_nothing_heavy():
    heavy = (
        "grpc",
        "jax",
        "keras",
        "keras_tuner",
        "matplotlib",
        "numpy",
        "scipy",
        "tensorflow",
        "tensorflow_datasets",
        "torch",
        "typer",
    )
    loaded, _ = run(
        "import sys, keras_earlyexit\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert loaded.strip() == "[]"


def test_a_module_of_ours_that_fails_leaves_keras_usable():
    _, errors = run(
        "from keras_earlyexit import _register\n"
        "_register._MODULES += ('broken',)\n"
        + LOOK_UP.replace(
            "for module in _register._MODULES:",
            "for module in _register._MODULES[:-1]:",
        )
        + "assert keras.layers.Dense(1).units == 1"
    )
    assert "keras_earlyexit.broken cannot be imported" in errors
