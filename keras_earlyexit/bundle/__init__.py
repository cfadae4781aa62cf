"""Bundles: folders from which a model with exits answers by itself.

A bundle holds `manifest.json` and one file for each stage. Reading one needs
NumPy and what runs its stages, neither Keras nor TensorFlow for the formats
`litert` and `onnx`. `ee.export` writes bundles.
"""

from keras_earlyexit import _lazy

_HOMES = {
    "Bundle": "answering",
    "BundleError": "specs",
    "Manifest": "manifest",
    "Routed": "answering",
    "TensorSpec": "specs",
    "load_bundle": "reading",
}

__getattr__, __dir__, __all__ = _lazy.attach(__name__, _HOMES)
