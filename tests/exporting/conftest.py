"""A small model, and its bundles in every format."""

import bundling
import keras
import numpy as np
import pytest

import keras_earlyexit as ee


@pytest.fixture(scope="session")
def rows():
    return np.random.default_rng(0).normal(size=(40, 6)).astype("float32")


@pytest.fixture(scope="session")
def small(rows):
    """A model that no test changes."""
    keras.utils.set_random_seed(1)
    model = bundling.make_model()
    bundling.set_thresholds(model, rows)
    return model


@pytest.fixture(scope="session")
def bundle_in(small, tmp_path_factory):
    """A function: format -> path of the small model's bundle in it."""
    made = {}

    def get(format):
        if format not in made:
            made[format] = tmp_path_factory.mktemp(format) / "bundle"
            ee.export(small, made[format], format=format)
        return made[format]

    return get
