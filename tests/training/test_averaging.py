"""Several edges whose segments are averaged, over a real connection."""

import contextlib
import threading

import keras
import numpy as np
import pytest
from training_server import serving

import keras_earlyexit as ee
from cloud_worker.training.averaging import Averaging
from cloud_worker.training.trainer import Trainer
from edge_worker.training.trainer import EdgeTrainer
from keras_earlyexit import snapshots
from protos.errors import Refused, VersionMismatch
from protos.security import ClientSecurity

SECURITY = ClientSecurity(insecure=True)
EVERY, BATCH, EPOCHS = 2, 16, 3


def build(units=6):
    keras.utils.set_random_seed(0)
    row = keras.Input((8,), name="row")
    x = row
    for i in range(2):
        x = keras.layers.Dense(units, activation="tanh", name=f"dense_{i}")(x)
        x = keras.layers.BatchNormalization(name=f"norm_{i}")(x)
    outputs = keras.layers.Dense(3, activation="softmax", name="head")(x)
    return ee.add_exits(keras.Model(row, outputs, name="small"), ["norm_0"])


def data(edge, rows=64):
    rng = np.random.default_rng(edge)
    y = rng.integers(0, 3, rows)
    x = rng.normal(size=(rows, 8)) + 2 * np.eye(3, 8)[y]
    return x.astype("float32"), y


def edge_trainer(target, folder, edge, units=6, **options):
    options = {"average_every": EVERY, **options}
    return EdgeTrainer(
        build(units),
        "exit_0",
        target,
        folder / f"edge_{edge}",
        optimizer=keras.optimizers.Adam(0.01),
        security=SECURITY,
        edge_id=f"edge-{edge}",
        **options,
    )


@contextlib.contextmanager
def cloud(folder, **options):
    """A cloud worker that trains and, with options, averages."""
    edge_segment, segment = ee.split(build(), "exit_0")
    segment.compile(keras.optimizers.Adam(0.01))
    shapes = [tuple(v.shape) for v in snapshots.float_weights(edge_segment)]

    def make():
        averaging = None
        if options:
            averaging = Averaging(shapes, folder / "cloud", **options)
        return Trainer.for_segment(
            segment, folder / "cloud", averaging=averaging
        )

    with serving(make) as (target, trainer):
        yield target, trainer


def expected(edges, epochs=EPOCHS):
    """Segments stepped apart and averaged by hand, each on its own data."""
    segments = []
    for _ in edges:
        segments.append(ee.split(build(), "exit_0")[0])
        segments[-1].compile(keras.optimizers.Adam(0.01))
    step, since = 0, 0
    orders = {
        (edge, epoch): np.random.default_rng((0, epoch, 0)).permutation(64)
        for edge in edges
        for epoch in range(epochs)
    }
    for epoch in range(epochs):
        for start in range(0, 64, BATCH):
            if since == EVERY:
                average(segments)
                since = 0
            for edge, segment in zip(edges, segments, strict=True):
                rows = orders[edge, epoch][start : start + BATCH]
                x, y = data(edge)
                segment.learn(x[rows], y[rows])
            step, since = step + 1, since + 1
    average(segments)
    return segments


def average(segments):
    for variables in zip(*map(snapshots.float_weights, segments), strict=True):
        mean = np.zeros(variables[0].shape)
        for variable in variables:
            mean += np.asarray(variable.value) * (1 / len(variables))
        for variable in variables:
            variable.assign(mean.astype("float32"))


def fit(trainer, edge, **options):
    options = {"epochs": EPOCHS, "batch_size": BATCH, "verbose": 0, **options}
    return trainer.fit(*data(edge), **options)


def together(*jobs):
    """Runs functions at the same time; raises what one of them raised."""
    errors = []

    def run(job):
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def check_same(one, other):
    for a, b in zip(
        snapshots.state_of(one), snapshots.state_of(other), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("stops_at", [None, 4])
def test_two_edges_are_averaged_also_when_one_stops(tmp_path, stops_at):
    """To the bit what averaging by hand gives, optimizer state included."""

    class Stop(keras.callbacks.Callback):
        seen = 0

        def on_train_batch_end(self, batch, logs=None):
            self.seen += 1
            if self.seen == stops_at:
                raise KeyboardInterrupt

    with cloud(tmp_path, quorum=2, wait_s=100.0) as (target, trainer):
        edges = [edge_trainer(target, tmp_path, edge) for edge in (0, 1)]
        final = [edges[0].segment, edges[1].segment]

        def stop_and_go_on():
            with pytest.raises(KeyboardInterrupt):
                with edges[1]:
                    fit(edges[1], 1, callbacks=[Stop()])
            with edge_trainer(target, tmp_path, 1) as again:
                final[1] = again.segment
                fit(again, 1)

        with edges[0], edges[1]:
            together(
                lambda: fit(edges[0], 0),
                stop_and_go_on if stops_at else lambda: fit(edges[1], 1),
            )
        assert edges[0].averaging.rounds == 6
        assert trainer.steps == 2 * EPOCHS * 4
    for one, other in zip(final, expected((0, 1)), strict=True):
        check_same(one, other)


def test_edge_that_leaves_holds_nobody_up(tmp_path):
    with cloud(tmp_path, quorum=1, wait_s=100.0) as (target, _):
        with edge_trainer(target, tmp_path, 0) as stays:
            with edge_trainer(target, tmp_path, 1) as leaves:
                together(
                    lambda: fit(stays, 0, epochs=1),
                    lambda: fit(leaves, 1, epochs=1),
                )
            # Far below the 100 s that a round could wait.
            fit(stays, 0, epochs=3)
            assert stays.averaging.rounds == 6
            assert stays.averaging.skipped == 0


def test_who_joins_late_begins_with_the_average(tmp_path):
    with cloud(tmp_path, quorum=1, wait_s=0.2) as (target, _):
        with edge_trainer(target, tmp_path, 0) as first:
            fit(first, 0)
        with edge_trainer(target, tmp_path, 1) as second:
            second._loop.average_if_due()
            for one, other in zip(
                snapshots.float_weights(first.segment),
                snapshots.float_weights(second.segment),
                strict=True,
            ):
                np.testing.assert_array_equal(one.value, other.value)


def test_too_few_edges_go_on_with_their_own(tmp_path):
    with cloud(tmp_path, quorum=2, wait_s=0.2) as (target, _):
        with edge_trainer(target, tmp_path, 0) as alone:
            fit(alone, 0, epochs=1)
            assert alone.averaging.rounds == 0
            assert alone.averaging.skipped == 2


def test_cloud_that_does_not_average_says_so(tmp_path):
    with cloud(tmp_path) as (target, _):
        with edge_trainer(target, tmp_path, 0) as edge:
            with pytest.raises(Refused, match="--average-quorum"):
                fit(edge, 0, epochs=1)


def test_weights_of_another_form_are_refused(tmp_path):
    with cloud(tmp_path, quorum=1) as (target, trainer):
        trainer._averaging.form = "0" * 64
        with pytest.raises(VersionMismatch, match="averaged weights"):
            edge_trainer(target, tmp_path, 0)


@pytest.mark.parametrize("every", [0, -1, 2.0, "2"])
def test_number_of_batches(tmp_path, every):
    with pytest.raises(ValueError, match="average_every"):
        edge_trainer("127.0.0.1:1", tmp_path, 0, average_every=every)
