"""Keras finds the package's classes, whatever is imported first.

The classes are looked up in new processes, as one import settles the matter
for the rest of a process. They use Keras' NumPy backend, which loads fastest.
"""

import os
import subprocess
import sys

import pytest

LOOK_UP = """
import keras, sys
from keras_earlyexit import _register
assert not any(type(f) is _register._Watcher for f in sys.meta_path)
for module in _register._MODULES:
    assert f"keras_earlyexit.{module}" in sys.modules, module
found = keras.saving.get_registered_object("keras_earlyexit>ExitBlock")
assert found is not None and found.__name__ == "ExitBlock", found
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


@pytest.mark.parametrize(
    "imports",
    [
        "import keras_earlyexit, keras",
        "import keras, keras_earlyexit",
        "import keras_earlyexit; from keras import layers",
        "import keras_earlyexit.blocks",
        "import keras_earlyexit.surgery",
        "import keras_earlyexit.model",
        "import keras_earlyexit as ee; ee.add_exits",
    ],
)
def test_keras_knows_the_classes_after(imports):
    _, errors = run(f"{imports}\n{LOOK_UP}")
    assert errors == ""


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


def test_import_times_can_be_listed():
    _, listing = run(
        f"import keras_earlyexit, keras\n{LOOK_UP}", "-Ximporttime"
    )
    assert "keras_earlyexit.blocks" in listing


def test_the_source_of_keras_can_still_be_read():
    run(
        "import keras_earlyexit, keras, inspect\n"
        "from importlib import resources\n"
        "assert 'import' in inspect.getsource(keras)\n"
        "assert resources.files('keras').joinpath('__init__.py').is_file()\n"
        "assert 'exec_module' not in vars(keras.__spec__.loader)"
    )


def test_looking_for_keras_does_not_import_it():
    run(
        "import keras_earlyexit, importlib.util, sys\n"
        "assert importlib.util.find_spec('keras')\n"
        "assert importlib.util.find_spec('keras')\n"
        "assert 'keras' not in sys.modules\n" + LOOK_UP
    )


def test_two_threads_import_at_once():
    run(
        "import keras_earlyexit, importlib, threading\n"
        "names = ['keras', 'keras_earlyexit.model', 'keras']\n"
        "threads = [\n"
        "    threading.Thread(target=importlib.import_module, args=[name])\n"
        "    for name in names\n"
        "]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n" + LOOK_UP
    )


def test_a_second_try_at_importing_keras_still_registers():
    run(
        "import keras_earlyexit, os, sys\n"
        "os.environ['KERAS_BACKEND'] = 'nonsense'\n"
        "try:\n"
        "    import keras\n"
        "    raise SystemExit('Keras took an unknown backend')\n"
        "except ValueError:\n"
        "    pass\n"
        "for name in [n for n in sys.modules if n.split('.')[0] == 'keras']:\n"
        "    del sys.modules[name]\n"
        "os.environ['KERAS_BACKEND'] = 'numpy'\n" + LOOK_UP
    )


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
