"""Every policy keeps one contract."""

import json
import pathlib

import keras
import numpy as np
import pytest
from keras import ops

import keras_earlyexit as ee
from keras_earlyexit.policies import Policy, Score, carry_shape_of, score_of
from keras_earlyexit.policies.confidence import exit_distribution
from keras_earlyexit.tasks import Head

pytestmark = pytest.mark.backends

CLASSES = Head(3, "softmax", "classification")
VALUES = Head(3, "linear", "regression")
PREDICTION = np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3]], "float32")
CONFIDENCE = np.array([[0.9], [0.2]], "float32")
SCORES = ("learned", "max_probability", "entropy", "margin", "joint_gate")
REDUCIBLE = ("max_probability", "entropy", "margin")


def scored(policy, prediction, confidence=None, carry=None, head=CLASSES, at=0):
    """A policy's score and carry as arrays."""
    given = [prediction, confidence, carry]
    given = [None if v is None else ops.convert_to_tensor(v) for v in given]
    score, carry = score_of(policy, head, *given, at)
    carry = None if carry is None else ops.convert_to_numpy(carry)
    return ops.convert_to_numpy(score), carry


def check_policy(policy, head=CLASSES, prediction=PREDICTION):
    """What every policy must do; called once for each of them."""
    # Scores: one number per sample, the same alone and in a batch.
    carry = None
    for at in range(2):
        before = carry
        score, carry = scored(policy, prediction, CONFIDENCE, before, head, at)
        assert score.shape == (2,) and np.isfinite(score).all()
        for i in range(2):
            row = slice(i, i + 1)
            alone, _ = scored(
                policy,
                prediction[row],
                CONFIDENCE[row],
                None if before is None else before[row],
                head,
                at,
            )
            assert float(alone[0]) == pytest.approx(float(score[i]), abs=1e-6)
    # What is carried has the shape that the policy says.
    shape = carry_shape_of(policy, head, prediction.shape[1:])
    assert (carry is None) == (shape is None)
    if shape is not None:
        assert carry.shape == (2, *shape)
    # Thresholds: one for all, or one per exit.
    assert policy.thresholds(2).dtype == np.float32
    assert policy.thresholds(2).shape == (2,)
    policy.check(head, 2)
    # Configuration: everything comes back.
    config = keras.saving.serialize_keras_object(policy)
    again = ee.policies.get(config)
    assert type(again) is type(policy)
    assert again.get_config() == policy.get_config()
    # The layer that computes it in a stage is saved with the stage.
    layer = Score(policy, head, 0)
    twin = Score.from_config(layer.get_config())
    found = twin(*map(ops.convert_to_tensor, (prediction, CONFIDENCE)))
    found = found if shape is None else found[0]
    first, _ = scored(policy, prediction, CONFIDENCE, None, head)
    np.testing.assert_allclose(ops.convert_to_numpy(found), first, atol=1e-6)


@pytest.mark.parametrize("threshold", [None, 0.3, (0.3, 0.6), np.inf])
@pytest.mark.parametrize("name", [*SCORES, "patience"])
def test_contract(name, threshold):
    check_policy(ee.policies.get(name, threshold=threshold))


@pytest.mark.parametrize("reduce", ["mean", "min", 0.25])
@pytest.mark.parametrize("name", REDUCIBLE)
def test_contract_with_positions(name, reduce):
    many = np.stack([PREDICTION, PREDICTION[:, ::-1]], axis=1)
    check_policy(ee.policies.get(name, reduce=reduce), prediction=many)


def test_contract_of_patience():
    check_policy(ee.policies.get("patience", tolerance=0.1), VALUES)
    many = np.stack([PREDICTION, PREDICTION[:, ::-1]], axis=1)
    check_policy(ee.policies.get("patience"), prediction=many)
    labels = Head(3, "sigmoid", "multilabel")
    check_policy(ee.policies.get("patience"), labels)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("learned", [0.9, 0.2]),
        ("max_probability", [0.7, 0.5]),
        ("margin", [0.5, 0.2]),
        ("entropy", [1 - 0.801819 / np.log(3), 1 - 1.029653 / np.log(3)]),
        ("joint_gate", [0.9, 0.2]),
        ("patience", [0.0, 0.0]),
    ],
)
def test_scores_by_hand(name, expected):
    score, _ = scored(ee.policies.get(name), PREDICTION, CONFIDENCE)
    assert score == pytest.approx(expected, abs=1e-5)


def test_entropy_at_its_ends():
    ends = np.array([[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]], "float32")
    score, _ = scored(ee.policies.get("entropy"), ends)
    assert score == pytest.approx([1.0, 0.0], abs=1e-6)


def test_positions_are_reduced():
    sure = np.linspace(0.5, 1.0, 11, dtype="float32")
    many = np.stack([sure, 1 - sure], axis=-1)[None]
    for reduce, expected in (("mean", 0.75), ("min", 0.5), (0.1, 0.55)):
        policy = ee.policies.get("max_probability", reduce=reduce)
        score, _ = scored(policy, many, head=Head(2, "softmax", CLASSES.task))
        assert score == pytest.approx([expected])


@pytest.mark.parametrize("reduce", ["max", 0, 1.5, None])
def test_bad_reduction(reduce):
    with pytest.raises(ValueError, match="`reduce` to be 'mean', 'min'"):
        ee.policies.get("margin", reduce=reduce)


def test_patience_counts_agreements_in_a_row():
    policy = ee.policies.get("patience", patience=2)
    assert policy.threshold == 1.5
    # Classes: the first sample stays, the second changes its mind once.
    answers = [(0, 1), (0, 1), (0, 2), (0, 2)]
    counts, carry = [], None
    for at, classes in enumerate(answers):
        prediction = np.eye(3, dtype="float32")[list(classes)]
        score, carry = scored(policy, prediction, None, carry, CLASSES, at)
        counts.append(score.tolist())
    assert counts == [[0, 0], [1, 1], [2, 0], [3, 1]]


def test_patience_with_values():
    policy = ee.policies.get("patience", tolerance=0.5)
    values = ([[1.0], [1.0]], [[1.4], [2.0]], [[1.8], [2.1]])
    head, counts, carry = Head(1, "linear", "regression"), [], None
    for at, value in enumerate(values):
        value = np.array(value, "float32")
        score, carry = scored(policy, value, None, carry, head, at)
        counts.append(score.tolist())
    assert counts == [[0, 0], [1, 0], [2, 1]]


def test_patience_of_many_positions_is_that_of_the_least():
    policy = ee.policies.get("patience")
    first = np.eye(3, dtype="float32")[[[0, 1], [0, 1]]]
    second = np.eye(3, dtype="float32")[[[0, 1], [0, 2]]]
    _, carry = scored(policy, first)
    score, _ = scored(policy, second, None, carry, at=1)
    assert score.tolist() == [1, 0]


def test_patience_refuses_what_it_cannot_count():
    patience = ee.policies.get("patience")
    with pytest.raises(ValueError, match="at least two early exits"):
        patience.check(CLASSES, 1)
    with pytest.raises(ValueError, match="Expected a `tolerance`"):
        patience.check(VALUES, 2)
    with pytest.raises(ValueError, match="Expected a `tolerance`"):
        ee.policies.get("patience", tolerance=0.1).check(CLASSES, 2)
    for wrong in (0, 1.5, "2"):
        with pytest.raises(ValueError, match="integer of at least 1"):
            ee.policies.get("patience", patience=wrong)


def golden():
    path = pathlib.Path(__file__).parent / "data" / "jei.json"
    return json.loads(path.read_text())["exit_distribution"]["cases"]


@pytest.mark.parametrize("case", golden())
def test_joint_gate_golden_values(case):
    gates = [np.array([[g]], "float32") for g in case["gates"]]
    leaving, conditional = exit_distribution(
        [ops.convert_to_tensor(gate) for gate in gates]
    )
    leaving = [float(ops.convert_to_numpy(p)[0, 0]) for p in leaving]
    assert leaving == pytest.approx(case["exit_probabilities"], abs=1e-6)
    policy, carry, left_at = ee.policies.get("joint_gate"), None, len(gates)
    for at, (gate, q) in enumerate(
        zip(gates, case["conditional"], strict=True)
    ):
        score, carry = scored(policy, PREDICTION[:1], gate, carry, at=at)
        if q is not None:
            assert float(score[0]) == pytest.approx(q, abs=1e-6)
            same = float(ops.convert_to_numpy(conditional[at])[0, 0])
            assert same == pytest.approx(q, abs=1e-6)
        if score[0] > policy.threshold and left_at == len(gates):
            left_at = at
    assert left_at == case["exit_index"]


def test_max_probability_of_logits_and_labels():
    policy = ee.policies.get("max_probability")
    logits = np.log(PREDICTION) + 2.0
    head = Head(3, "linear", "classification")
    score, _ = scored(policy, logits, head=head)
    assert score == pytest.approx([0.7, 0.5])
    # Each label is as sure as the likelier of its two values.
    head = Head(3, "sigmoid", "multilabel")
    score, _ = scored(policy, PREDICTION, head=head)
    expected = np.maximum(PREDICTION, 1 - PREDICTION).mean(axis=1)
    assert score == pytest.approx(expected)


def test_values_have_no_probabilities():
    policy = ee.policies.get("max_probability")
    with pytest.raises(ValueError, match="no class probabilities"):
        scored(policy, PREDICTION, head=VALUES)
    with pytest.raises(ValueError, match="'patience' with a tolerance"):
        policy.check(VALUES, 2)


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
    with pytest.raises(ValueError, match="only with the name of a policy"):
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
