"""Early exits for Keras: easy samples leave early, the rest is skipped.

`import keras_earlyexit as ee` is lazy: neither Keras nor scipy is loaded until
a name is used for the first time. What `keras.models.load_model` needs to know
is registered as soon as Keras itself is imported, before or after this
package.
"""

import importlib

from keras_earlyexit import _register

_HOMES = {
    "Anytime": "anytime",
    "EarlyExitModel": "model",
    "ExitBlock": "blocks",
    "ExitResult": "results",
    "Plan": "planning.plans",
    "Router": "routing",
    "SegmentModel": "splitting.segments",
    "calibrate": "calibration.calibrating",
    "export": "exporting.bundles",
    "load_bundle": "bundle.reading",
    "merge": "splitting.merging",
    "partition": "splitting.partitioning",
    "plan_cut": "planning.choosing",
    "split": "splitting.split",
    "add_classes": "widening",
    "add_exits": "building",
    "strip_exits": "building",
}
_MODULES = (
    "backbones",
    "blocks",
    "bundle",
    "calibration",
    "callbacks",
    "cost",
    "datasets",
    "losses",
    "model",
    "objectives",
    "optimizers",
    "placement",
    "plots",
    "policies",
    "regimes",
    "report",
    "routing",
    "surgery",
    "tasks",
    "tuning",
)

__all__ = sorted(["__version__", *_HOMES, *_MODULES])


def __getattr__(name):
    if name in _HOMES:
        module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
        value = getattr(module, name)
    elif name in _MODULES:
        value = importlib.import_module(f"{__name__}.{name}")
    elif name == "__version__":
        # Here, because it takes longer to import than all the rest.
        from importlib import metadata

        value = metadata.version("keras-earlyexit")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    return __all__


_register.when_keras_is_imported()
