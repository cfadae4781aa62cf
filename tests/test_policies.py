"""Every policy keeps one contract."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_earlyexit as ee
from keras_earlyexit.policies import Policy, Score, score_of
from keras_earlyexit.tasks import Head

pytestmark = pytest.mark.backends

CLASSES = Head(3, "softmax", "classification")
PREDICTION = np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3]], "float32")
CONFIDENCE = np.array([[0.9], [0.2]], "float32")


def check_policy(policy, head=CLASSES):
    """What every policy must do; called once for each of them."""
    prediction = ops.convert_to_tensor(PREDICTION)
    confidence = ops.convert_to_tensor(CONFIDENCE)
    # Scores: one number per sample, the same alone and in a batch.
    score, carry = score_of(policy, head, prediction, confidence, None, 0)
    assert tuple(score.shape) == (2,)
    for i in range(2):
        alone, _ = score_of(
            policy,
            head,
            prediction[i : i + 1],
            confidence[i : i + 1],
            None,
            0,
        )
        assert float(alone[0]) == pytest.approx(float(score[i]), abs=1e-6)
    # What is carried has the shape that the policy says.
    shape = policy.carry_shape(head.units)
    assert (carry is None) == (shape is None)
    if shape is not None:
        assert tuple(carry.shape) == (2, *shape)
    # Thresholds: one for all, or one per exit.
    assert policy.thresholds(2).dtype == np.float32
    assert policy.thresholds(2).shape == (2,)
    # Configuration: everything comes back.
    config = keras.saving.serialize_keras_object(policy)
    again = ee.policies.get(config)
    assert type(again) is type(policy)
    assert again.get_config() == policy.get_config()
    # The layer that computes it in a stage is saved with the stage.
    layer = Score(policy, head, 0)
    twin = Score.from_config(layer.get_config())
    found = twin(prediction, confidence)
    found = found if shape is None else found[0]
    np.testing.assert_allclose(
        ops.convert_to_numpy(found), ops.convert_to_numpy(score), atol=1e-6
    )


@pytest.mark.parametrize("threshold", [None, 0.3, (0.3, 0.6), np.inf])
@pytest.mark.parametrize("name", ["learned", "max_probability"])
def test_contract(name, threshold):
    check_policy(ee.policies.get(name, threshold=threshold))


def test_scores_by_hand():
    learned = ee.policies.get("learned")
    largest = ee.policies.get("max_probability")
    for policy, expected in ((learned, [0.9, 0.2]), (largest, [0.7, 0.5])):
        score, _ = score_of(
            policy,
            CLASSES,
            ops.convert_to_tensor(PREDICTION),
            ops.convert_to_tensor(CONFIDENCE),
            None,
            0,
        )
        assert ops.convert_to_numpy(score) == pytest.approx(expected)


def test_max_probability_of_logits_and_labels():
    policy = ee.policies.get("max_probability")
    logits = np.log(PREDICTION) + 2.0
    head = Head(3, "linear", "classification")
    score, _ = score_of(
        policy, head, ops.convert_to_tensor(logits), None, None, 0
    )
    assert ops.convert_to_numpy(score) == pytest.approx([0.7, 0.5])
    # Each label is as sure as the likelier of its two values.
    head = Head(3, "sigmoid", "multilabel")
    score, _ = score_of(
        policy, head, ops.convert_to_tensor(PREDICTION), None, None, 0
    )
    expected = np.maximum(PREDICTION, 1 - PREDICTION).mean(axis=1)
    assert ops.convert_to_numpy(score) == pytest.approx(expected)


def test_score_has_no_probabilities_of_values():
    head = Head(3, "linear", "regression")
    with pytest.raises(ValueError, match="no class probabilities"):
        score_of(
            ee.policies.get("max_probability"),
            head,
            ops.convert_to_tensor(PREDICTION),
            None,
            None,
            0,
        )


@pytest.mark.parametrize("threshold", ["high", [], [[0.1]], float("nan")])
def test_bad_thresholds(threshold):
    with pytest.raises(ValueError, match="threshold"):
        ee.policies.get("learned", threshold=threshold)


def test_setting_a_bad_threshold_keeps_the_old():
    policy = ee.policies.get("learned", threshold=0.3)
    with pytest.raises(ValueError, match="not NaN"):
        policy.threshold = float("nan")
    assert policy.threshold == 0.3


def test_unknown_names_and_kinds():
    with pytest.raises(ValueError, match="Did you mean 'learned'"):
        ee.policies.get("learnt")
    with pytest.raises(TypeError, match="Received: 3"):
        ee.policies.get(3)
    with pytest.raises(ValueError, match="only with a policy's name"):
        ee.policies.get(ee.policies.get("learned"), threshold=0.1)


def test_a_policy_of_ones_own():
    @keras.saving.register_keras_serializable(package="test_policies")
    class Second(Policy):
        """The second largest probability, the wrong way round."""

        name = "second"
        uses_probabilities = True

        def score(self, probabilities, confidence, carry, exit_index):
            return 1.0 - ops.sort(probabilities, axis=-1)[:, -2], carry

    check_policy(Second(threshold=0.75))
