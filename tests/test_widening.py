"""Further classes: the old ones are as they were, the new ones are learned."""

import json

import keras
import numpy as np
import pytest
from bundling import make_model
from zoo import as_numpy as numbers

import keras_earlyexit as ee
from keras_earlyexit.cli import main


def data(classes, rows=200, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.choice(classes, rows)
    x = rng.normal(size=(rows, 6)) + 3 * np.eye(6)[y]
    return x.astype("float32"), y


def build(block="pool", units=4):
    keras.utils.set_random_seed(0)
    return make_model(units, block=block)


def accuracies(model, x, y):
    answers = model(x)
    return [
        float((numbers(answers[name]).argmax(-1) == y).mean())
        for name in model.exit_names
    ]


@pytest.mark.parametrize("block", ["pool", "plain", "bnpool"])
def test_old_classes_are_kept(block):
    model = build(block)
    x, _ = data([0, 1, 2, 3])
    wider = ee.add_classes(model, ["five", "six"])
    assert wider.head.units == 6
    before, after = model(x), wider(x)
    for name in model.exit_names:
        old, new = numbers(before[name]), numbers(after[name])
        # Every answer is the same class, so accuracy is the same.
        np.testing.assert_array_equal(old.argmax(-1), new.argmax(-1))
        # Among the old ones, probabilities are as they were.
        np.testing.assert_allclose(
            new[:, :4] / new[:, :4].sum(-1, keepdims=True), old, rtol=1e-4
        )
    kernel = numbers(model.net.get_layer("head").kernel)
    wide = numbers(wider.net.get_layer("head").kernel)
    assert kernel.tobytes() == np.ascontiguousarray(wide[:, :4]).tobytes()


def test_new_classes_are_learned():
    model = build()
    x, y = data([0, 1, 2, 3])
    model.compile(keras.optimizers.Adam(0.01), "branchynet")
    model.fit(x, y, epochs=8, verbose=0)
    wider = ee.add_classes(model, ["five", "six"])
    before = accuracies(model, x, y)
    assert accuracies(wider, x, y) == before
    fresh = data([4, 5], seed=1)
    assert max(accuracies(wider, *fresh)) == 0
    wider.compile(keras.optimizers.Adam(0.01), "branchynet")
    wider.fit(*data([0, 1, 2, 3, 4, 5], 400), epochs=12, verbose=0)
    assert min(accuracies(wider, *fresh)) > 0.8
    assert min(accuracies(wider, x, y)) > 0.6
    # The model that it came from is another one.
    assert accuracies(model, x, y) == before


def test_segments_are_widened_one_by_one(tmp_path):
    segments = ee.split(build(), ("exit_0", "exit_1"))
    wider = [ee.add_classes(segment, ["five"]) for segment in segments]
    x, y = data([0, 1, 2, 3, 4])
    crossing = x
    for i, segment in enumerate(wider):
        segment.compile("adam")
        crossing = segment.learn(crossing, y).outputs.get("feature")
        segment.save(tmp_path / f"{i}.keras")
    loaded = [
        keras.models.load_model(tmp_path / f"{i}.keras") for i in range(3)
    ]
    assert ee.merge(*loaded).predict(x).shape == (len(x), 5)
    agreements = [
        (parts[0].agreement(1), parts[1].agreement(1))
        for parts in (segments, wider)
    ]
    for one, other in agreements:
        assert one == other
    assert agreements[0][0] != agreements[1][0]
    with pytest.raises(ValueError, match="of one model"):
        ee.merge(segments[0], *wider[1:])
    other = ee.add_classes(segments[0], ["six"])
    with pytest.raises(ValueError, match="of one model"):
        ee.merge(other, *wider[1:])


def test_head_with_an_activation_behind_it():
    keras.utils.set_random_seed(0)
    row = keras.Input((6,))
    x = keras.layers.Dense(8, activation="relu", name="a")(row)
    x = keras.layers.Dense(4)(x)
    plain = keras.Model(row, keras.layers.Softmax()(x))
    wider = ee.add_classes(ee.add_exits(plain, ["a"]), "five")
    assert wider.predict(np.zeros((2, 6), "float32")).shape == (2, 5)


def test_policy_and_thresholds_are_kept():
    model = build()
    model.policy.threshold = [0.4, 0.6]
    wider = ee.add_classes(model, ["five"])
    assert wider.policy.name == "max_probability" and wider.has_given_policy
    assert list(wider.policy.thresholds(2)) == [0.4, 0.6]


@pytest.mark.parametrize("names", [[], [""], [1], ["a", "a"], ""])
def test_names(names):
    with pytest.raises(ValueError, match="name"):
        ee.add_classes(build(), names)


def test_what_cannot_be_widened():
    with pytest.raises(TypeError, match="EarlyExitModel"):
        ee.add_classes(keras.Sequential(), ["five"])
    row = keras.Input((6,))
    x = keras.layers.Dense(8, activation="relu", name="a")(row)
    values = keras.Model(row, keras.layers.Dense(2)(x))
    early = ee.add_exits(values, ["a"], task="regression")
    with pytest.raises(ValueError, match="values"):
        ee.add_classes(early, ["five"])
    x = keras.layers.Dense(4, activation="softmax")(x)
    x = keras.layers.Dropout(0.1)(x)
    outputs = {**ee.add_exits(keras.Model(row, x), ["a"]).net.output}
    early = ee.EarlyExitModel(
        keras.Model(row, outputs), ee.tasks.Head(4, "softmax", "classification")
    )
    with pytest.raises(ValueError, match="Dense"):
        ee.add_classes(early, ["five"])


def test_command(tmp_path, capsys):
    x, y = data([0, 1, 2, 3])
    np.savez(tmp_path / "data.npz", x=x, y=y)
    build().save(tmp_path / "model.keras")
    arguments = [
        *("widen", str(tmp_path / "model.keras"), "--names", "five,six"),
        *("-o", str(tmp_path / "wider.keras")),
        *("--data", str(tmp_path / "data.npz")),
    ]
    assert main([*arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["classes"] == 6 and facts["new"] == {"five": 4, "six": 5}
    assert all(one == other for one, other in facts["accuracy"].values())
    assert keras.models.load_model(tmp_path / "wider.keras").head.units == 6
    assert main(arguments) == 0
    assert "exit_0 accuracy" in capsys.readouterr().out
    assert main([*arguments[:3], "five,five", *arguments[4:]]) == 4
