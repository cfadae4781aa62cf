"""SavedModels: the whole route as one graph, for TensorFlow Serving."""

import numpy as np
import pytest
import zoo
from bundling import ON_TENSORFLOW

import keras_earlyexit as ee

if not ON_TENSORFLOW:
    pytest.skip(
        "SavedModels are written on TensorFlow", allow_module_level=True
    )

import tensorflow as tf


def test_the_routed_graph(small, rows, bundle_in):
    bundle = ee.load_bundle(bundle_in("saved_model"))
    routed = bundle_in("saved_model") / bundle.manifest.routed / "1"
    loaded = tf.saved_model.load(str(routed))
    expected = small.predict_exits(rows)
    serve = loaded.signatures["serving_default"]
    for size in (1, 7, 40):
        found = serve(row=tf.constant(rows[:size]))
        np.testing.assert_array_equal(
            found["exit_index"], expected.exit_index[:size]
        )
        for name in ("predictions", "score"):
            np.testing.assert_allclose(
                found[name], getattr(expected, name)[:size], atol=1e-5
            )
    choose = loaded.signatures["with_thresholds"]
    thresholds = tf.constant([np.inf, -np.inf])
    found = choose(row=tf.constant(rows), thresholds=thresholds)
    assert (found["exit_index"].numpy() == 1).all()


def test_several_inputs_keep_their_names(tmp_path):
    _, model = zoo.plain_and_early("two_inputs_early")
    x, _ = zoo.ZOO["two_inputs_early"].batch(5)
    ee.export(model, tmp_path / "bundle", format="saved_model")
    loaded = tf.saved_model.load(str(tmp_path / "bundle" / "routed" / "1"))
    found = loaded.signatures["serving_default"](
        **{name: tf.constant(array) for name, array in x.items()}
    )
    np.testing.assert_allclose(
        found["predictions"], model.predict(x, verbose=0), atol=1e-5
    )


def test_segments_have_no_routed_graph(small, tmp_path):
    report = ee.export(
        small, tmp_path / "cut", format="saved_model", cut="exit_0"
    )
    for path in report.bundles:
        assert ee.load_bundle(path).manifest.routed is None
