"""Makes `keras.models.load_model` know this package's classes.

A saved model names its classes, and Keras finds them only after the modules
that define them have been imported. `import keras_earlyexit` must load neither
Keras nor them, so it leaves a note instead: once Keras has been imported, by
whomever, these modules are too.

Why a finder on `sys.meta_path`: it is the one place that sees every import.
Why it watches this package's own modules as well: when a program imports
`keras_earlyexit.model` first, Keras finishes while `model` is half imported,
and a module that needs a name from it would fail. So the modules are imported
only when the last of the watched imports has ended.
"""

import importlib
import logging
import sys
import threading

_MODULES = (
    "blocks",
    "calibration.streaming",
    "losses",
    "model",
    "objectives",
    "optimizers",
    "policies",
    "regimes",
    "splitting.segments",
)
_PACKAGE = __name__.rpartition(".")[0]


def when_keras_is_imported():
    """Registers the classes now if Keras is loaded, else as soon as it is."""
    if "keras" in sys.modules:
        # Waits if another thread is in the middle of importing it.
        importlib.import_module("keras")
    if _is_imported("keras"):
        _register()
    else:
        sys.meta_path.insert(0, _Watcher())


class _Watcher:
    """Finds no module itself; notices when the watched ones are imported."""

    def __init__(self):
        self._lock = threading.Lock()
        self._running = 0

    def find_spec(self, name, path=None, target=None):
        if name != "keras" and not name.startswith(f"{_PACKAGE}."):
            return None
        spec = self._ask_the_others(name, path, target)
        if spec is not None:
            self._watch(spec.loader)
        return spec

    def _ask_the_others(self, name, path, target):
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            if finder is not self and find_spec is not None:
                spec = find_spec(name, path, target)
                if spec is not None:
                    return spec
        return None

    def _watch(self, loader):
        # On the loader itself and gone after one use: a loader of another
        # type would hide what `inspect` and `importlib.resources` ask for.
        attributes = getattr(loader, "__dict__", None)
        if not isinstance(attributes, dict) or "exec_module" in attributes:
            return
        execute = loader.exec_module

        def exec_module(module):
            del loader.exec_module
            with self._lock:
                self._running += 1
            keras_is_ready = False
            try:
                execute(module)
                keras_is_ready = module.__name__ == "keras"
            finally:
                # Also when a module of ours failed: Keras may be there.
                if self._is_done(keras_is_ready or _is_imported("keras")):
                    _register()

        loader.exec_module = exec_module

    def _is_done(self, keras_is_ready):
        with self._lock:
            self._running -= 1
            done = keras_is_ready and not self._running
            if done and self in sys.meta_path:
                sys.meta_path.remove(self)
                return True
            return False


def _is_imported(name):
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    return module is not None and not getattr(spec, "_initializing", False)


def _register():
    for module in _MODULES:
        try:
            importlib.import_module(f"{_PACKAGE}.{module}")
        except Exception:
            # Keras is not to fail for it: who uses the module gets the error.
            logging.getLogger(_PACKAGE).warning(
                "%s.%s cannot be imported; Keras will not find its classes "
                "when it loads a saved model.",
                _PACKAGE,
                module,
                exc_info=True,
            )
