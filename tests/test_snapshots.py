"""A snapshot gives the state back bit by bit, or says that it cannot."""

import random
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest

from keras_earlyexit import snapshots
from keras_earlyexit.snapshots import DamagedSnapshot

ARRAYS = [
    np.arange(6, dtype="float32").reshape(2, 3),
    np.array([True, False]),
    np.array(7, "int64"),
    np.zeros((0, 4), "uint32"),
]
FACTS = {"edges": {"a": [1, 5]}, "text": "é"}


def build():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.BatchNormalization(),
            # Without a seed PyTorch draws from a generator of its own.
            keras.layers.Dropout(0.5, seed=1),
            keras.layers.Dense(2),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def test_arrays_and_facts(tmp_path):
    path = tmp_path / "state"
    bfloat16 = np.asarray(keras.ops.ones((2,), "bfloat16"))
    snapshots.write(path, [*ARRAYS, bfloat16], FACTS)
    arrays, facts = snapshots.read(path)
    assert facts == FACTS
    for one, other in zip([*ARRAYS, bfloat16], arrays, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert one.tobytes() == other.tobytes()
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


@pytest.mark.backends_long
def test_training_goes_on_bit_by_bit(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 16, 4)).astype("float32")
    y = rng.normal(size=(6, 16, 2)).astype("float32")
    unbroken, stopped, later = build(), build(), build()
    for i in range(3):
        unbroken.train_on_batch(x[i], y[i])
        stopped.train_on_batch(x[i], y[i])
    snapshots.write(tmp_path / "state", snapshots.state_of(stopped), {})
    snapshots.restore(later, snapshots.read(tmp_path / "state")[0])
    for i in range(3, 6):
        unbroken.train_on_batch(x[i], y[i])
        later.train_on_batch(x[i], y[i])
    for one, other in zip(
        snapshots.state_of(unbroken), snapshots.state_of(later), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_state_of_another_model_is_refused():
    model = build()
    before = snapshots.state_of(model)
    with pytest.raises(ValueError, match="the same model"):
        snapshots.restore(model, [*before[:-1], np.zeros(3)])


def test_truncated_at_every_byte(tmp_path):
    path = tmp_path / "state"
    snapshots.write(path, ARRAYS, FACTS)
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(DamagedSnapshot, match="state"):
            snapshots.read(path)


def test_random_bit_flips(tmp_path):
    path, rng = tmp_path / "state", random.Random(0)
    snapshots.write(path, ARRAYS, FACTS)
    data = path.read_bytes()
    for _ in range(1000):
        damaged = bytearray(data)
        bit = rng.randrange(8 * len(data))
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(DamagedSnapshot):
            snapshots.read(path)


def test_disk_full_leaves_what_was_there(tmp_path):
    path = tmp_path / "state"
    snapshots.write(path, ARRAYS, FACTS)
    code = textwrap.dedent(
        """
        import resource, sys
        import numpy as np
        from keras_earlyexit import snapshots
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        try:
            snapshots.write(sys.argv[1], [np.zeros(10000)], {})
        except OSError as error:
            print(error.errno)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == "27", done.stderr
    assert snapshots.read(path)[1] == FACTS
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_what_a_kill_left_behind_is_removed(tmp_path):
    path = tmp_path / "state"
    snapshots.write(path, ARRAYS, FACTS)
    (tmp_path / ".state.0123456789abcdef.partial").write_bytes(b"half")
    snapshots.remove_left_behind(path)
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
