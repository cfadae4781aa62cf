"""The EENets objectives against the authors' values and by hand."""

import json
import pathlib

import keras
import numpy as np
import pytest
from keras import ops

import keras_earlyexit as ee
from keras_earlyexit.objectives.eenets import mixtures
from keras_earlyexit.objectives.terms import ClassTerms

pytestmark = pytest.mark.backends

DATA = pathlib.Path(__file__).parents[1] / "data" / "eenets_losses.json"
GOLDEN = json.loads(DATA.read_text())
NAMES = sorted(GOLDEN["expected"])


def arguments(dtype="float32"):
    return (
        np.asarray(GOLDEN["y_true"]),
        [np.asarray(p, dtype) for p in GOLDEN["predictions"]],
        [np.asarray(h, dtype) for h in GOLDEN["confidences"]],
        GOLDEN["costs"],
    )


def tags(name):
    return np.asarray(GOLDEN["exit_tags"]) if name == "eenet_v4" else None


def numbers(parts):
    return {name: float(value) for name, value in parts.items()}


@pytest.mark.parametrize("name", NAMES)
def test_golden_values(name):
    objective = ee.objectives.get(name)
    found = numbers(objective(*arguments(), exit_tags=tags(name)))
    assert found == pytest.approx(GOLDEN["expected"][name], abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["column", "one_hot"])
def test_forms_of_labels(name, form):
    y, *rest = arguments()
    y = y[:, None] if form == "column" else np.eye(3, dtype="float32")[y]
    objective = ee.objectives.get(name)
    found = objective(y, *rest, exit_tags=tags(name))
    expected = GOLDEN["expected"][name]["loss"]
    assert float(found["loss"]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_logits_give_the_same(name):
    y, predictions, confidences, costs = arguments()
    logits = [np.log(p) + 3.0 for p in predictions]
    objective = ee.objectives.get(name, from_logits=True)
    found = objective(y, logits, confidences, costs, exit_tags=tags(name))
    expected = GOLDEN["expected"][name]["loss"]
    assert float(found["loss"]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_cost_weight(name):
    objective = ee.objectives.get(name, cost_weight=0.3)
    found = numbers(objective(*arguments(), exit_tags=tags(name)))
    assert found["loss"] == pytest.approx(
        found["prediction_loss"]
        + 0.3 * found["cost_loss"]
        + found["confidence_loss"],
        abs=1e-6,
    )


def test_mixture_weights_sum_to_one():
    _, _, confidences, costs = arguments()
    weights = np.asarray(GOLDEN["mixture_weights"])
    for i, column in enumerate(weights.T):
        unit = [ops.zeros((2, 1)) for _ in range(3)]
        unit[i] = ops.ones((2, 1))

        def mix(h, term, rest):
            return h * term + (1.0 - h) * rest

        confidences = [ops.convert_to_tensor(h) for h in confidences]
        mixed, _ = mixtures(unit, confidences, costs, mix)
        found = ops.convert_to_numpy(mixed[0])[:, 0]
        assert found == pytest.approx(column, abs=1e-6)
    assert weights.sum(axis=1) == pytest.approx(1.0)


def test_v2_with_no_confidence_is_final_alone():
    y, predictions, _, costs = arguments()
    zeros = [np.zeros((2, 1), "float32")] * 2
    found = ee.objectives.get("eenet_v2", cost_weight=0.7)(
        y, predictions, zeros, costs
    )
    final = -np.log(predictions[-1][np.arange(2), y]).mean()
    assert float(found["loss"]) == pytest.approx(3 * (final + 0.7), abs=1e-5)


def test_v1_with_full_confidence_is_the_first_exit_alone():
    y, predictions, _, costs = arguments()
    ones = [np.ones((2, 1), "float32")] * 2
    found = ee.objectives.get("eenet_v1", cost_weight=0.7)(
        y, predictions, ones, costs
    )
    first = -np.log(predictions[0][np.arange(2), y]).mean()
    expected = first + 0.7 * costs[0]
    assert float(found["loss"]) == pytest.approx(expected, abs=1e-5)


def test_refreshed_tags():
    y, predictions, _, costs = arguments()
    best = ee.objectives.get("eenet_v4").best_exits(y, predictions, costs)
    assert ops.convert_to_numpy(best).tolist() == GOLDEN["refreshed_exit_tags"]


@pytest.mark.parametrize("name", NAMES)
def test_sample_weight_of_zero_leaves_a_sample_out(name):
    y, predictions, confidences, costs = arguments()
    objective = ee.objectives.get(name)
    weighted = objective(
        y,
        predictions,
        confidences,
        costs,
        sample_weight=np.array([2.0, 0.0]),
        exit_tags=np.array([0, 0]) if name == "eenet_v4" else None,
    )
    alone = objective(
        y[:1],
        [p[:1] for p in predictions],
        [h[:1] for h in confidences],
        costs,
        exit_tags=np.array([0]) if name == "eenet_v4" else None,
    )
    expected = float(alone["prediction_loss"])
    assert float(weighted["prediction_loss"]) == pytest.approx(
        expected, abs=1e-5
    )


@pytest.mark.parametrize("name", NAMES)
def test_extreme_values_stay_finite(name):
    y = np.array([0, 1])
    sure = np.array([[0.0, 1.0], [1.0, 0.0]], "float32")
    confidences = [np.array([[0.0], [1.0]], "float32")] * 3
    found = ee.objectives.get(name)(
        y,
        [sure] * 3,
        confidences,
        [0.2, 0.5, 1.0],
        exit_tags=np.array([0, 2]) if name == "eenet_v4" else None,
    )
    assert np.isfinite(list(numbers(found).values())).all()


def test_labels_out_of_range_give_nan_not_a_wrong_number():
    _, *rest = arguments()
    found = ee.objectives.get("eenet_v2")(np.array([0, 3]), *rest)
    assert np.isnan(float(found["loss"]))


def test_missing_labels():
    _, *rest = arguments()
    with pytest.raises(ValueError, match="'eenet_v1' needs labels"):
        ee.objectives.get("eenet_v1")(None, *rest)


def test_labels_of_the_wrong_shape():
    _, *rest = arguments()
    with pytest.raises(ValueError, match=r"one-hot labels of shape \(batch, 3"):
        ee.objectives.get("eenet_v1")(np.zeros((2, 4)), *rest)


def test_too_few_confidences():
    y, predictions, confidences, costs = arguments()
    with pytest.raises(ValueError, match="3 confidences.*Received: 2"):
        ee.objectives.get("eenet_v3")(y, predictions, confidences[:2], costs)


@pytest.mark.parametrize("name", NAMES)
def test_config_round_trip(name):
    objective = ee.objectives.get(name, cost_weight=0.4)
    config = keras.saving.serialize_keras_object(objective)
    again = ee.objectives.get(config)
    assert type(again) is type(objective)
    assert again.get_config() == objective.get_config()


def test_unknown_name_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'eenet_v2'"):
        ee.objectives.get("eenets_v2")


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_bad_cost_weight(weight):
    with pytest.raises(ValueError, match="cost_weight"):
        ee.objectives.get("eenet_v1", cost_weight=weight)


def test_mixing_is_done_in_log_space():
    terms = ClassTerms()
    mixed = terms.mix(
        *(ops.convert_to_tensor([[value]]) for value in (0.3, -200.0, -201.0))
    )
    expected = -200.0 + np.log(0.3 + 0.7 * np.exp(-1.0))
    found = ops.convert_to_numpy(mixed).item()
    assert found == pytest.approx(expected, rel=1e-6)
