"""SavedModels: the whole route as one graph, for TensorFlow Serving."""

import numpy as np
import pytest
import zoo
from bundling import ON_TENSORFLOW, make_model, set_thresholds

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


def routed(path):
    """The signatures of a bundle's routed graph, and what they belong to."""
    return tf.saved_model.load(str(path / "routed" / "1"))


def check_segments(paths, x, model, thresholds):
    """The routed graphs of the segments, one after another, are the model."""
    expected = model.router.predict_exits(x, thresholds=thresholds)
    waiting, crossing = np.arange(len(x)), {"row": x}
    for path in paths:
        loaded = routed(path)
        found = loaded.signatures["with_thresholds"](
            thresholds=tf.constant(thresholds, tf.float32),
            **{name: tf.constant(x) for name, x in crossing.items()},
        )
        found = {name: value.numpy() for name, value in found.items()}
        staying = found.pop("staying", [])
        left = np.setdiff1d(np.arange(len(waiting)), staying)
        for name in ("predictions", "exit_index", "score"):
            np.testing.assert_allclose(
                found.pop(name)[left],
                getattr(expected, name)[waiting[left]],
                atol=1e-5,
            )
        waiting, crossing = waiting[staying], found
        if not len(waiting):
            return
    raise AssertionError(f"{len(waiting)} samples have no answer")


@pytest.mark.parametrize("objective", [None, "zero_time_waste"])
def test_the_routed_graphs_of_segments(objective, rows, tmp_path):
    model = make_model()
    if objective:
        # Its exits hand on what they remember.
        model.compile("sgd", objective)
    set_thresholds(model, rows)
    ee.export(
        model, tmp_path / "cut", format="saved_model", cut=["exit_0", "exit_1"]
    )
    paths = [tmp_path / "cut" / f"segment_{i}" for i in range(3)]
    assert all(ee.load_bundle(path).manifest.routed for path in paths)
    for thresholds in (
        model.policy.thresholds(2),
        (np.inf, np.inf),
        (-np.inf, np.inf),
        (np.inf, -np.inf),
    ):
        for size in (1, len(rows)):
            check_segments(paths, rows[:size], model, thresholds)


def test_a_segment_of_several_exits(small, rows, tmp_path):
    """Who leaves at its first exit does not go on behind its last."""
    ee.export(small, tmp_path / "cut", format="saved_model", cut="exit_1")
    paths = [tmp_path / "cut" / f"segment_{i}" for i in range(2)]
    check_segments(paths, rows, small, small.policy.thresholds(2))
    found = routed(paths[0]).signatures["serving_default"](
        row=tf.constant(rows)
    )
    there = ee.load_bundle(paths[0]).route(rows)
    np.testing.assert_array_equal(found["staying"], there.staying)
    np.testing.assert_array_equal(found["exit_index"], there.exit_index)
    np.testing.assert_allclose(found["feature"], there.feature, atol=1e-6)
