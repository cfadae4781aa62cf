"""The model of the page when none is given: digits, trained on first use."""

import os
import pathlib

import keras_earlyexit as ee

_EPOCHS = 12
# Raised when the same data and code would give another model.
_VERSION = 1


def cache_folder():
    """Where the trained model is kept for the next time."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "keras_earlyexit"


def model(folder=None, epochs=_EPOCHS, callbacks=()):
    """A small network for digits, from the cache or trained now.

    Two early exits, thresholds for a risk of 1 % from the calibration split.

    Args:
        folder: Where it is kept; `None`: `cache_folder()`.
        epochs: Passes over the 1000 training images.
        callbacks: Keras callbacks for the training.

    Returns:
        An `EarlyExitModel`.
    """
    import keras

    from keras_earlyexit.snapshots import save_model

    folder = cache_folder() if folder is None else pathlib.Path(folder)
    path = folder / f"digits-{_VERSION}-{epochs}.keras"
    if path.exists():
        return keras.models.load_model(path)
    keras.utils.set_random_seed(0)
    x, y = ee.datasets.load("digits", "train")
    x = ee.datasets.normalize("digits", x)
    plain = ee.backbones.resnet_cifar(20, x.shape[1:], 10)
    made = ee.add_exits(plain, 2, block="plain", policy="max_probability")
    first = ee.objectives.TwoStage("eenet_v2", epochs=max(epochs // 3, 1))
    made.compile(keras.optimizers.Adam(2e-3), first)
    made.fit(
        x, y, batch_size=64, epochs=epochs, verbose=0, callbacks=list(callbacks)
    )
    x, y = ee.datasets.load("digits", "calibration")
    x = ee.datasets.normalize("digits", x)
    ee.calibrate(made, x, y, risk="performance_gap", epsilon=0.01)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(made, path)
    return made
