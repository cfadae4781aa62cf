"""Both sides of training, over a real connection."""

import functools
import os

import keras
import numpy as np
import pytest
from training_server import serving

import keras_earlyexit as ee
from cloud_worker.training.trainer import Trainer
from edge_worker.training.position import Position
from edge_worker.training.trainer import EdgeTrainer
from keras_earlyexit import snapshots
from protos.errors import Fenced, VersionMismatch, WireError
from protos.security import ClientSecurity

SECURITY = ClientSecurity(insecure=True)


def build(units=6):
    keras.utils.set_random_seed(0)
    row = keras.Input((8,), name="row")
    x = row
    for i in range(3):
        x = keras.layers.Dense(units, activation="tanh", name=f"dense_{i}")(x)
        x = keras.layers.Dropout(0.1, seed=i, name=f"dropout_{i}")(x)
    outputs = keras.layers.Dense(3, activation="softmax", name="head")(x)
    return ee.add_exits(
        keras.Model(row, outputs, name="small"), ["dropout_0", "dropout_1"]
    )


def data(rows=70):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, rows)
    x = rng.normal(size=(rows, 8)) + 2 * np.eye(3, 8)[y]
    return x.astype("float32"), y


def cloud_segment(cut="exit_0"):
    segment = ee.split(build(), cut)[1]
    segment.compile(keras.optimizers.Adam(0.01))
    return segment


def edge_trainer(target, state, cut="exit_0", **options):
    options = {"optimizer": keras.optimizers.SGD(0.1), **options}
    return EdgeTrainer(
        build(), cut, target, state, security=SECURITY, **options
    )


@functools.cache
def serial(epochs, batch_size=16):
    """The same two segments, stepped one after the other in one process."""
    edge, cloud = ee.split(build(), "exit_0")
    edge.compile(keras.optimizers.SGD(0.1))
    cloud.compile(keras.optimizers.Adam(0.01))
    x, y = data()
    for epoch in range(epochs):
        order = np.random.default_rng((0, epoch, 0)).permutation(len(x))
        for start in range(0, len(x), batch_size):
            rows = order[start : start + batch_size]
            learned = edge.learn(x[rows], y[rows])
            cloud.learn(learned.outputs["feature"], y[rows].astype("int32"))
    return edge, cloud


def check_same(one, other):
    for a, b in zip(
        snapshots.state_of(one), snapshots.state_of(other), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_both_sides_are_those_of_a_serial_run(tmp_path, capsys):
    cloud = cloud_segment()
    with serving(lambda: Trainer.for_segment(cloud, tmp_path / "c")) as (
        target,
        trainer,
    ):
        with edge_trainer(target, tmp_path / "e", forward="all") as edge:
            history = edge.fit(*data(), epochs=3, batch_size=16, verbose=2)
        assert trainer.steps == 15
        assert edge.cloud.committed == 15 and len(edge.journal) == 0
    expected_edge, expected_cloud = serial(3)
    check_same(edge.segment, expected_edge)
    check_same(cloud, expected_cloud)
    logs = history.history
    assert logs["loss"][2] < logs["loss"][0]
    assert logs["cloud_committed"][-1] <= 15
    # The disk's time is no wait for room in the journal.
    assert logs["waited_s"] == [0, 0, 0]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "edge waits" not in lines[-1]
    assert edge.cloud.bytes_down / 15 <= 256


def test_goes_on_after_both_sides_were_stopped(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2 and self.model.stop_at == self.params["epochs"]:
                raise KeyboardInterrupt

    for stops, epochs in ((True, 2), (False, 2), (False, 3)):
        cloud = cloud_segment()
        with serving(
            lambda cloud=cloud: Trainer.for_segment(cloud, tmp_path / "c")
        ) as (target, _):
            with edge_trainer(
                target, tmp_path / "e", forward="all", checkpoint_every=2
            ) as edge:
                edge.segment.stop_at = 2 if stops else None
                try:
                    edge.fit(
                        *data(),
                        epochs=epochs,
                        batch_size=16,
                        callbacks=[Stop()],
                        verbose=0,
                    )
                except KeyboardInterrupt:
                    assert stops
                assert edge.differing == 0
    expected_edge, expected_cloud = serial(3)
    check_same(edge.segment, expected_edge)
    check_same(cloud, expected_cloud)


def test_forwards_those_who_stay_and_some_of_the_others(tmp_path):
    cloud = cloud_segment("exit_1")
    with serving(lambda: Trainer.for_segment(cloud, tmp_path / "c")) as (
        target,
        trainer,
    ):
        with edge_trainer(
            target, tmp_path / "f", cut="exit_1", codec="uint8+zstd"
        ) as edge:
            history = edge.fit(*data(), epochs=8, batch_size=16, verbose=0)
        shares = history.history["forwarded"]
        assert shares[0] == 1 and 0.2 < shares[-1] <= 1
        assert trainer.steps == 40
        with edge_trainer(
            target, tmp_path / "g", cut="exit_1", forward=0.5, edge_id="other"
        ) as edge:
            history = edge.fit(*data(), epochs=1, batch_size=16, verbose=0)
        assert history.history["forwarded"] == [pytest.approx(0.5, abs=0.02)]
        assert trainer.steps == 45


def test_other_weights_are_refused(tmp_path):
    cloud = cloud_segment()
    with serving(lambda: Trainer.for_segment(cloud, tmp_path / "c")) as (
        target,
        _,
    ):
        with pytest.raises(VersionMismatch, match="weights"):
            EdgeTrainer(
                build(units=7),
                "exit_0",
                target,
                tmp_path / "e",
                security=SECURITY,
            )
        with pytest.raises(VersionMismatch, match="recipe"):
            EdgeTrainer(
                build(),
                "exit_0",
                target,
                tmp_path / "f",
                base="branchynet",
                security=SECURITY,
            )


def test_other_thresholds_are_refused(tmp_path):
    cloud = cloud_segment()
    with serving(lambda: Trainer.for_segment(cloud, tmp_path / "c")) as (
        target,
        _,
    ):
        model = build()
        model.policy = "max_probability"
        model.policy.threshold = 0.5
        with pytest.raises(VersionMismatch, match="policy"):
            EdgeTrainer(
                model, "exit_0", target, tmp_path / "e", security=SECURITY
            )


def test_batches_that_the_cloud_would_not_take(tmp_path):
    cloud = cloud_segment()
    with serving(
        lambda: Trainer.for_segment(cloud, tmp_path / "c", max_rows=16)
    ) as (target, _):
        with edge_trainer(target, tmp_path / "e") as edge:
            with pytest.raises(ValueError, match="at most 16"):
                edge.fit(*data(), batch_size=17)


def test_older_run_is_fenced(tmp_path):
    cloud = cloud_segment()
    with serving(lambda: Trainer.for_segment(cloud, tmp_path / "c")) as (
        target,
        _,
    ):
        with edge_trainer(target, tmp_path / "e") as edge:
            edge.fit(*data(), epochs=1, verbose=0)
            # Another folder of the same edge, which was started more often.
            for _ in range(2):
                edge_trainer(target, tmp_path / "f").close()
            with pytest.raises(Fenced):
                edge.fit(*data(), epochs=2, verbose=0)


def test_settings_of_a_state_are_kept(tmp_path):
    cloud = cloud_segment()
    with serving(lambda: Trainer.for_segment(cloud, tmp_path / "c")) as (
        target,
        _,
    ):
        edge_trainer(target, tmp_path / "e").close()
        with pytest.raises(ValueError, match="codec='float32'"):
            edge_trainer(target, tmp_path / "e", codec="int8")
        with edge_trainer(target, tmp_path / "e"):
            with pytest.raises(ValueError, match="another process"):
                edge_trainer(target, tmp_path / "e")


def test_labels_out_of_range_are_refused(tmp_path):
    cloud = cloud_segment()
    before = snapshots.state_of(cloud)
    with serving(lambda: Trainer.for_segment(cloud, tmp_path / "c")) as (
        target,
        trainer,
    ):
        with edge_trainer(target, tmp_path / "e") as edge:
            x, y = data()
            with pytest.raises(ValueError, match="from 0 to 2"):
                edge.fit(x, y + 1, verbose=0)
            # Past the edge's own look at it.
            outputs = {"feature": np.ones((2, 6), "float32")}
            edge._uplink.record(
                outputs, np.array([0, 3]), None, Position(), ends_pass=True
            )
            with pytest.raises(WireError):
                edge._uplink.drain(1)
        assert trainer.steps == 0
    for one, other in zip(before, snapshots.state_of(cloud), strict=True):
        np.testing.assert_array_equal(one, other)


def test_starts_without_the_cloud_and_catches_up(tmp_path):
    cloud = cloud_segment()
    make = lambda: Trainer.for_segment(cloud, tmp_path / "c")  # noqa: E731
    with serving(make) as (target, _):
        pass
    edge = edge_trainer(target, tmp_path / "e", forward="all")
    x, y = data()
    edge._loop.step(x[:16], y[:16], None, ends_pass=False)
    assert len(edge.journal) == 1 and not edge.cloud.is_connected
    edge.close()
    cloud = cloud_segment()
    with serving(make) as (target, trainer):
        with edge_trainer(target, tmp_path / "e", forward="all") as edge:
            edge.fit(x, y, epochs=1, batch_size=16, verbose=0)
        assert trainer.steps == 5


def test_what_a_state_counts_on_is_on_the_disk(tmp_path, monkeypatch):
    edge = edge_trainer("127.0.0.1:1", tmp_path / "e", forward="all")
    x, y = data()
    flushed = []
    fsync = os.fsync

    def seen(descriptor):
        flushed.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    edge._loop.step(x[:16], y[:16], None, ends_pass=True)
    monkeypatch.setattr(os, "fsync", seen)
    edge._loop._save()
    (journal,) = (tmp_path / "e" / "journal").iterdir()
    assert flushed[0] == journal.stat().st_ino and len(flushed) > 1
    edge.close()
