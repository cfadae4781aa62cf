"""Three machines train at the same time, each batch once on each of them."""

import contextlib
import os

import keras
import numpy as np
import pytest
from training_server import serving
from waiting import poll

import keras_earlyexit as ee
from cloud_worker.training.outlet import Outlet
from cloud_worker.training.trainer import Trainer
from edge_worker.training.trainer import EdgeTrainer
from keras_earlyexit import snapshots
from protos.errors import VersionMismatch
from protos.security import ClientSecurity

SECURITY = ClientSecurity(insecure=True)
CUTS = ("exit_0", "exit_1")


def build():
    keras.utils.set_random_seed(0)
    row = keras.Input((8,), name="row")
    x = row
    for i in range(3):
        x = keras.layers.Dense(6, activation="tanh", name=f"dense_{i}")(x)
        x = keras.layers.Dropout(0.1, seed=i, name=f"dropout_{i}")(x)
    outputs = keras.layers.Dense(3, activation="softmax", name="head")(x)
    return ee.add_exits(
        keras.Model(row, outputs, name="small"), ["dropout_0", "dropout_1"]
    )


def segments():
    made = ee.split(build(), CUTS)
    made[0].compile(keras.optimizers.SGD(0.1))
    for segment in made[1:]:
        segment.compile(keras.optimizers.Adam(0.01))
    return made


def data(rows=64):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, rows)
    x = rng.normal(size=(rows, 8)) + 2 * np.eye(3, 8)[y]
    return x.astype("float32"), y


@contextlib.contextmanager
def worker(segment, folder, target=None, address="127.0.0.1:0", **options):
    """A worker that trains a segment, and forwards to another at `target`."""

    def make():
        outlet = None
        if target is not None:
            outlet = Outlet(segment, target, folder, SECURITY, forward="all")
        return Trainer.for_segment(
            segment, folder, outlet=outlet, idle_commit_s=0.05, **options
        )

    with serving(make, address) as found:
        yield found


def serial(epochs):
    """The same segments, stepped one after the other."""
    edge, middle, top = segments()
    x, y = data()
    for epoch in range(epochs):
        order = np.random.default_rng((0, epoch, 0)).permutation(len(x))
        for rows in np.split(order, 4):
            labels = y[rows].astype("int32")
            feature = edge.learn(x[rows], labels).outputs["feature"]
            feature = middle.learn(feature, labels).outputs["feature"]
            top.learn(feature, labels)
    return edge, middle, top


def check_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(
            snapshots.state_of(one), snapshots.state_of(other), strict=True
        ):
            np.testing.assert_array_equal(a, b)


def test_three_tiers_also_when_the_middle_one_stops(tmp_path):
    edge, _, top = segments()
    with worker(top, tmp_path / "top") as (above, top_trainer):
        for epochs in (2, 3):
            # Anew, so that all it knows comes from its folder.
            middle = segments()[1]
            with worker(middle, tmp_path / "middle", above, commit_every=3) as (
                target,
                _,
            ):
                with EdgeTrainer(
                    edge,
                    None,
                    target,
                    tmp_path / "edge",
                    security=SECURITY,
                    forward="all",
                ) as trainer:
                    trainer.fit(
                        *data(), epochs=epochs, batch_size=16, verbose=0
                    )
                    assert trainer.cloud.committed == 4 * epochs
            assert top_trainer.steps == 4 * epochs
    check_same((edge, middle, top), serial(3))
    merged = ee.merge(edge, middle, top)
    x, y = data()
    right = np.asarray(merged(x)["final"]).argmax(-1) == y
    assert merged.exit_names == ("exit_0", "exit_1", "final")
    assert right.mean() > 0.4


def test_nothing_goes_on_that_is_not_committed(tmp_path):
    """What is learned from again, in another order, has not left before."""
    middle = segments()[1]
    outlet = Outlet(middle, "127.0.0.1:1", tmp_path, SECURITY, forward="all")
    outlet.open()
    outputs = {"feature": np.ones((2, 6), "float32")}
    labels = np.array([0, 1], "int32")
    outlet.add(outputs, labels, None)
    outlet.add(outputs, labels, None, ends_pass=True)
    assert outlet.left == 0
    state = outlet.state()
    outlet.committed()
    assert outlet.left == 2
    outlet.add(outputs, labels[::-1], None)
    outlet.restore(state)
    # As after a commit that the journal did not get to see.
    assert outlet.flush() and outlet.left == 2
    outlet.close(0.0)
    again = Outlet(middle, "127.0.0.1:1", tmp_path, SECURITY, forward="all")
    again.open()
    again.restore(state)
    assert again.flush() and again.left == 2
    again.add(outputs, labels, None)
    again.committed()
    assert again.left == 3
    again.close(0.0)
    with pytest.raises(ValueError, match="further"):
        outlet.restore([])


def test_what_no_commit_holds_is_on_the_disk(tmp_path, monkeypatch):
    outlet = Outlet(segments()[1], "127.0.0.1:1", tmp_path, SECURITY)
    outlet.open()
    outlet.add({"feature": np.ones((2, 6), "float32")}, np.array([0, 1]), None)
    assert len(outlet.state()) == 2
    outlet.committed()
    flushed = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    # The record is in the journal and in nothing else from here on.
    assert len(outlet.state()) == 1 and len(flushed) == 1
    outlet.close(0.0)


def test_middle_waits_while_the_further_one_is_gone(tmp_path):
    edge, middle, top = segments()
    with worker(top, tmp_path / "top") as (above, _):
        pass
    with worker(middle, tmp_path / "middle", above) as (target, trainer):
        with EdgeTrainer(
            edge,
            None,
            target,
            tmp_path / "edge",
            security=SECURITY,
            forward="all",
        ) as edge_trainer:
            edge_trainer.fit(*data(), epochs=1, batch_size=16, verbose=0)
        outlet = trainer._learning._outlet
        poll(lambda: outlet.left == 4, 20)
        with worker(top, tmp_path / "top", address=above) as (_, last):
            poll(lambda: outlet.left == 0, 60)
            assert last.steps == 4


def test_further_worker_of_another_model_is_refused(tmp_path):
    _, middle, _ = segments()
    other = ee.split(build(), CUTS, base="branchynet")[2]
    other.compile("sgd")
    with worker(other, tmp_path / "top") as (above, _):
        with pytest.raises(VersionMismatch, match="recipe"):
            with worker(middle, tmp_path / "middle", above):
                pass
