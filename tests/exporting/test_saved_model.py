"""SavedModels: the whole route as one graph, for TensorFlow Serving."""

import json

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


def served(loaded, body):
    """What TensorFlow Serving makes of the JSON of a request in columns."""
    body = json.loads(body)
    signature = loaded.signatures[body["signature_name"]]
    specs = signature.structured_input_signature[1]
    assert set(body["inputs"]) == set(specs)
    inputs = {}
    for name, values in body["inputs"].items():
        # Over gRPC the same values come as this message.
        message = tf.make_tensor_proto(values, specs[name].dtype)
        inputs[name] = tf.constant(tf.make_ndarray(message))
        assert specs[name].shape.is_compatible_with(inputs[name].shape)
    outputs = signature(**inputs)
    rows = {len(value) for value in outputs.values()}
    assert len(rows) == 1, "rows of one request differ in number"
    text = json.dumps({k: v.numpy().tolist() for k, v in outputs.items()})
    return json.loads(text)


def test_what_a_client_of_tensorflow_serving_sends(small, rows, bundle_in):
    loaded = routed(bundle_in("saved_model"))
    expected = small.predict_exits(rows)
    columns = {"row": rows.tolist()}
    body = {"signature_name": "serving_default", "inputs": columns}
    found = served(loaded, json.dumps(body))
    assert found["exit_index"] == expected.exit_index.tolist()
    np.testing.assert_allclose(
        found["predictions"], expected.predictions, atol=1e-5
    )
    columns["thresholds"] = [2.0, 2.0]
    body = {"signature_name": "with_thresholds", "inputs": columns}
    assert set(served(loaded, json.dumps(body))["exit_index"]) == {2}


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
