"""Sources without an end: each batch is learned from once, on both sides."""

import itertools

import keras
import numpy as np
import pytest
from training_server import serving

import keras_earlyexit as ee
from cloud_worker.training.trainer import Trainer
from edge_worker.training.memory import MemoryLimit, MemoryLimitExceeded
from edge_worker.training.streams import Stream
from edge_worker.training.trainer import EdgeTrainer
from keras_earlyexit import snapshots
from protos.security import ClientSecurity


def batch(number, rows=8):
    rng = np.random.default_rng(number)
    y = rng.integers(0, 3, rows)
    x = rng.normal(size=(rows, 8)) + 2 * np.eye(3, 8)[y]
    return x.astype("float32"), y


def from_there(done):
    return map(batch, itertools.count(done))


def numbers_of(batches):
    known = {batch(i)[0].tobytes(): i for i in range(40)}
    return [known[x.tobytes()] for x, _, _ in batches]


def test_windows():
    for source in (from_there, from_there(7)):
        stream = Stream(source, steps=20, window=5, done=7)
        assert stream.passes(1, 2) == 4 and len(stream) == 5
        found = [numbers_of(stream.of_pass(1, 2))]
        found += [numbers_of(stream.of_pass(i)) for i in (2, 3)]
        assert found == [
            [7, 8, 9],
            [10, 11, 12, 13, 14],
            [15, 16, 17, 18, 19],
        ]
    stream = Stream(from_there, steps=7, window=5)
    assert stream.passes(0, 0) == 2
    list(stream.of_pass(0))
    assert numbers_of(stream.of_pass(1)) == [5, 6]


def test_source_that_ends():
    stream = Stream([batch(0)], steps=3)
    with pytest.raises(ValueError, match="ended after 1"):
        list(stream.of_pass(0))


@pytest.mark.parametrize("steps", [0, -1, 1.5, "3"])
def test_number_of_steps(steps):
    with pytest.raises(ValueError, match="steps"):
        Stream([], steps)


def build(units=6):
    keras.utils.set_random_seed(0)
    row = keras.Input((8,), name="row")
    x = keras.layers.Dense(units, activation="tanh", name="dense")(row)
    outputs = keras.layers.Dense(3, activation="softmax", name="head")(x)
    return ee.add_exits(keras.Model(row, outputs, name="small"), ["dense"])


class Stop(keras.callbacks.Callback):
    """Breaks off behind some batches."""

    def __init__(self, count):
        super().__init__()
        self.left = count

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def run(target, folder, source, steps, callbacks=()):
    with EdgeTrainer(
        build(),
        "exit_0",
        target,
        folder,
        optimizer=keras.optimizers.SGD(0.1),
        security=ClientSecurity(insecure=True),
        forward="all",
        checkpoint_every=4,
    ) as trainer:
        try:
            trainer.fit(
                source,
                steps=steps,
                steps_per_epoch=6,
                callbacks=list(callbacks),
                verbose=2,
            )
        except KeyboardInterrupt:
            assert callbacks
    return trainer


@pytest.mark.parametrize("can_go_back", [True, False])
def test_goes_on_after_a_stop(tmp_path, can_go_back):
    edge, expected = ee.split(build(), "exit_0")
    edge.compile(keras.optimizers.SGD(0.1))
    expected.compile(keras.optimizers.SGD(0.1))
    cloud = ee.split(build(), "exit_0")[1]
    cloud.compile(keras.optimizers.SGD(0.1))
    taken = []

    def live():
        for number in itertools.count():
            taken.append(number)
            yield batch(number)

    source = from_there if can_go_back else live()
    with serving(lambda: Trainer.for_segment(cloud, tmp_path / "cloud")) as (
        target,
        trainer,
    ):
        folder = tmp_path / "edge"
        run(target, folder, source, 20, [Stop(10)])
        last = run(target, folder, source, 14)
        # More of the same later.
        last = run(target, folder, source, 20)
        assert trainer.steps == 20
    if can_go_back:
        for number in range(20):
            x, y = batch(number)
            learned = edge.learn(x, y)
            expected.learn(learned.outputs["feature"], y.astype("int32"))
        for one, other in ((edge, last.segment), (expected, cloud)):
            for a, b in zip(
                snapshots.state_of(one), snapshots.state_of(other), strict=True
            ):
                np.testing.assert_array_equal(a, b)
    else:
        assert len(taken) == len(set(taken))


def test_arrays_are_no_stream(tmp_path):
    trainer = EdgeTrainer(
        build(),
        "exit_0",
        "127.0.0.1:1",
        tmp_path,
        security=ClientSecurity(insecure=True),
    )
    with trainer, pytest.raises(ValueError, match="source of"):
        trainer.fit(*batch(0), steps=3)


def limit(num_mb, taken_mb=100, units=1024):
    segment = ee.split(build(units), "exit_0")[0]
    segment.compile("adam")
    return MemoryLimit(segment, num_mb << 20, lambda: taken_mb << 20)


def test_memory_that_does_not_suffice_says_what_does():
    found = limit(320)
    with pytest.raises(MemoryLimitExceeded, match=r"batch_size of \d+ fits"):
        found.check_start(1_000_000)
    try:
        found.check_start(1_000_000)
    except MemoryLimitExceeded as error:
        fits = int(str(error).partition("batch_size of ")[2].split()[0])
    found.check_start(fits)
    with pytest.raises(MemoryLimitExceeded):
        found.check_start(fits + 1)
    with pytest.raises(MemoryLimitExceeded, match="No batch size does"):
        limit(200).check_start(1)


def test_memory_that_is_outgrown_ends_training():
    limit(100).check()
    with pytest.raises(MemoryLimitExceeded, match="last checkpoint"):
        limit(99).check()
    with pytest.raises(ValueError, match="above 0"):
        limit(0)
