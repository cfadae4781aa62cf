"""Batches, labels and who goes up: the same whenever they are asked for."""

import math

import numpy as np
import pytest
from bundling import make_model

import keras_earlyexit as ee
from edge_worker.training.batches import Batches, Iterated, labels_of
from keras_earlyexit.tasks import Head
from protos.feeding.forwarding import Forwarding

X = np.arange(50, dtype="float32").reshape(25, 2)
Y = np.arange(25)


def jitter(x, rng):
    return x + rng.normal(size=x.shape)


def same(one, other):
    return all(
        (a is b is None) or np.array_equal(a, b)
        for first, second in zip(one, other, strict=True)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("start", [0, 1, 3, 7])
def test_a_pass_can_be_entered_anywhere(start):
    for make in (
        lambda: Batches(X, Y, Y / 25, batch_size=4, augment=jitter, seed=3),
        lambda: Iterated([(X[:9], Y[:9])] * 7, augment=jitter, seed=3),
    ):
        whole = list(make().of_pass(2))
        assert same(whole[start:], list(make().of_pass(2, start)))
        assert not same(whole, list(make().of_pass(3)))
        assert len(whole) == len(make()) == 7


def test_every_sample_comes_once():
    batches = Batches(X, Y, batch_size=4)
    for number in range(2):
        labels = np.concatenate([y for _, y, _ in batches.of_pass(number)])
        assert sorted(labels) == list(range(25))
    plain = Batches(X, Y, batch_size=4, shuffle=False)
    assert [y[0] for _, y, _ in plain.of_pass(0)] == list(range(0, 25, 4))


def test_function_of_the_pass():
    batches = Iterated(lambda number: [(X + number, Y)])
    assert len(batches) == 0
    ((x, _, _),) = batches.of_pass(3)
    assert np.array_equal(x, X + 3) and len(batches) == 1


def test_counts_have_to_agree():
    with pytest.raises(ValueError, match="one length"):
        Batches(X, Y[:-1])


def test_labels():
    head = Head(4, "softmax", "classification")
    numbers = np.array([1, 3, 0])
    for y in (numbers, numbers[:, None], np.eye(4)[numbers]):
        found = labels_of(y, head)
        assert found.dtype == "int32" and np.array_equal(found, numbers)
    with pytest.raises(ValueError, match="Soft labels"):
        labels_of(np.full((2, 4), 0.25), head)
    head = Head(1, "linear", "regression")
    assert labels_of(np.ones(5), head).shape == (5, 1)


def test_forwarding():
    segment, _ = ee.split(make_model(policy="max_probability"))
    # Every second sample leaves.
    prediction = np.tile([[1, 0, 0, 0], [0.25] * 4], (20, 1))
    outputs = {
        "exit_0": prediction.astype("float32"),
        "exit_0_confidence": np.zeros((40, 1), "float32"),
        "feature": np.zeros((40, 8), "float32"),
    }

    def choose(forward, number, sequence, weight=None, outputs=outputs):
        chosen = Forwarding(forward).choose(
            segment, outputs, weight, number, sequence
        )
        return list(chosen.rows), chosen.weight

    everybody = list(range(40)), None
    assert choose("non_exited", 0, 5) == everybody
    rows, weight = choose("non_exited", 1, 5)
    assert len(rows) == 25 and set(range(1, 40, 2)) <= set(rows)
    assert rows == sorted(rows)
    assert rows == choose("non_exited", 1, 5)[0]
    assert any(choose("non_exited", 1, i)[0] != rows for i in range(6, 12))
    assert choose("all", 1, 5) == everybody
    assert len(choose(0.3, 0, 5)[0]) == 12
    # Nobody leaves.
    stay = {name: values[1::2] for name, values in outputs.items()}
    assert choose("non_exited", 1, 5, outputs=stay) == (everybody[0][:20], None)
    # However few there are, there is one, and it counts as it is.
    one = {name: values[:1] for name, values in outputs.items()}
    assert choose("non_exited", 1, 5, outputs=one) == ([0], None)
    # Those who are drawn count for four on the whole, two and a half to ten.
    leave = np.array(rows) % 2 == 0
    assert weight.dtype == "float32"
    counts_for = weight[leave] * 40 / 25
    assert 2.5 <= counts_for.min() < 4 < counts_for.max() <= 10
    np.testing.assert_allclose(weight[~leave], 25 / 40, rtol=1e-6)
    given = np.linspace(1, 3, 40).astype("float32")
    _, of_given = choose("non_exited", 1, 5, given)
    np.testing.assert_allclose(of_given, weight * given[rows], rtol=1e-6)
    for forward in ("all", 0.3):
        rows, of_given = choose(forward, 1, 5, given)
        np.testing.assert_array_equal(of_given, given[rows])


def edge(threshold):
    """A segment with one exit; its policy is what the model's was."""
    model = make_model()
    model.policy.threshold = threshold
    return ee.split(model)[0]


def outputs_of_scores(scores):
    """What an edge gives whose exit gives its class these probabilities."""
    scores = np.asarray(scores)[:, None]
    prediction = np.concatenate([scores, *[(1 - scores) / 3] * 3], axis=1)
    return {
        "exit_0": prediction.astype("float32"),
        "exit_0_confidence": np.zeros((len(scores), 1), "float32"),
        "feature": np.zeros((len(scores), 8), "float32"),
    }


@pytest.mark.parametrize("count", [1, 2, 5, 21, 40])
def test_the_less_certain_of_the_leavers_are_likelier_to_go_up(count):
    segment = edge(0.9)
    order = np.random.default_rng(0).permutation(count)
    outputs = outputs_of_scores(0.91 + 0.08 * order / 40)
    times, totals, tries = np.zeros(count), [], 2000
    for sequence in range(tries):
        rows, weight = Forwarding().choose(segment, outputs, None, 1, sequence)
        assert len(rows) == len(set(rows)) == math.ceil(count / 4)
        times[order[rows]] += 1
        totals.append(len(rows) if weight is None else weight.sum())
    if count == 1:
        assert times[0] == tries
        return
    chance = np.linspace(1.6, 0.4, count) * math.ceil(count / 4) / count
    error = np.sqrt(tries * chance * (1 - chance))
    assert np.all(np.abs(times - tries * chance) < 5 * error)
    # What each counts for is how seldom it is drawn.
    error = np.std(totals) / np.sqrt(tries)
    assert abs(np.mean(totals) - math.ceil(count / 4)) < 5 * error + 1e-5


def test_loss_of_those_who_go_up_is_that_of_the_batch():
    """In expectation over who is drawn."""
    rng = np.random.default_rng(0)
    segment = edge(0.6)
    scores = rng.uniform(0.3, 1, 32)
    outputs = outputs_of_scores(scores)
    losses = rng.normal(size=32) + 2 * scores
    found = []
    for sequence in range(500):
        rows, weight = Forwarding().choose(segment, outputs, None, 1, sequence)
        leavers = np.sum(scores > 0.6)
        assert len(rows) == 32 - leavers + math.ceil(leavers / 4)
        # As objectives and Keras take the mean.
        found.append(np.mean(losses[rows] * weight))
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - np.mean(losses)) < 4 * error
    assert abs(np.mean(losses) - np.mean(losses[scores <= 0.6])) > 0.1


@pytest.mark.parametrize("forward", ["exited", 0, 1.5, True, None])
def test_unknown_forwarding(forward):
    with pytest.raises(ValueError, match="non_exited"):
        Forwarding(forward)
