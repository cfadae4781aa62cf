"""Bundles: folders from which a model with exits answers by itself.

A bundle holds `manifest.json` and one file for each stage. Reading one needs
NumPy and what runs its stages, neither Keras nor TensorFlow for the formats
`litert` and `onnx`. `ee.export` writes bundles.
"""

import importlib

_HOMES = {
    "Bundle": "answering",
    "BundleError": "specs",
    "Manifest": "manifest",
    "Routed": "answering",
    "TensorSpec": "specs",
    "load_bundle": "reading",
}

__all__ = sorted(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__():
    return __all__
