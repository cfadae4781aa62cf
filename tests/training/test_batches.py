"""Batches, labels and who goes up: the same whenever they are asked for."""

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
    everybody = list(range(40))
    forwarding = Forwarding()
    assert list(forwarding.rows(segment, outputs, 0, 5)) == everybody
    rows = forwarding.rows(segment, outputs, 1, 5)
    assert len(rows) == 25 and set(range(1, 40, 2)) <= set(rows)
    assert list(rows) == sorted(rows)
    assert list(rows) == list(forwarding.rows(segment, outputs, 1, 5))
    assert list(rows) != list(forwarding.rows(segment, outputs, 1, 6))
    assert list(Forwarding("all").rows(segment, outputs, 1, 5)) == everybody
    assert len(Forwarding(0.3).rows(segment, outputs, 0, 5)) == 12
    # However few there are, there is one.
    one = {name: values[:1] for name, values in outputs.items()}
    assert len(forwarding.rows(segment, one, 1, 5)) == 1


@pytest.mark.parametrize("forward", ["exited", 0, 1.5, True, None])
def test_unknown_forwarding(forward):
    with pytest.raises(ValueError, match="non_exited"):
        Forwarding(forward)
