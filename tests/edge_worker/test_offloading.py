"""What leaves the machine: features or inputs, and never what should not."""

import contextlib

import keras
import ml_dtypes
import numpy as np
import pytest
import zstandard
from proxy import DOWN, UP, Proxy

import keras_earlyexit as ee
from edge_worker import EdgeWorker
from protos.codecs import NAMES

CANARY = 1234567.0
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
#: The numbers that cross in each codec.
KINDS = {
    "float32": "<f4",
    "float16": "<f2",
    "bfloat16": ml_dtypes.bfloat16,
    "uint8": "u1",
    "int8": "i1",
    "uint8_channel": "u1",
    "int8_channel": "i1",
    "uint4": "u1",
    "uint4_channel": "u1",
}


def test_input_is_sent_where_that_is_allowed(exported, cloud, rows, wanted):
    with EdgeWorker(
        exported.edge,
        cloud.address,
        insecure=True,
        offload="input",
        allow_raw_input=True,
    ) as worker:
        result = worker.predict(rows)
    np.testing.assert_array_equal(result.exit_index, wanted.exit_index)
    np.testing.assert_allclose(
        result.predictions, wanted.predictions, atol=1e-4
    )
    assert result.counts["cloud"] == (wanted.exit_index > 0).sum()


@pytest.mark.parametrize(
    ("allowed", "kind"), [(True, "input"), (False, "features")]
)
def test_auto_sends_the_smaller_that_is_allowed(
    exported, cloud, rows, wanted, allowed, kind
):
    # The input has 6 numbers, the feature 8.
    with EdgeWorker(
        exported.edge,
        cloud.address,
        insecure=True,
        offload="auto",
        allow_raw_input=allowed,
    ) as worker:
        result = worker.predict(rows)
        assert worker.stats["offload"] == kind
    np.testing.assert_array_equal(result.exit_index, wanted.exit_index)
    assert result.counts["degraded"] == 0


def test_auto_goes_on_with_features_where_inputs_are_not_taken(
    exported, start_cloud, rows, wanted
):
    with start_cloud(exported.cloud, "--insecure") as cloud:
        with EdgeWorker(
            exported.edge,
            cloud.address,
            insecure=True,
            offload="auto",
            allow_raw_input=True,
        ) as worker:
            result = worker.predict(rows)
            assert worker.stats["offload"] == "features"
    np.testing.assert_array_equal(result.exit_index, wanted.exit_index)


def test_a_raw_cut_is_refused(tmp_path):
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Rescaling(0.5, name="scaled")(inputs)
    x = keras.layers.Conv2D(2, 3, name="conv")(x)
    x = keras.layers.Flatten()(x)
    outputs = keras.layers.Dense(2, activation="softmax")(x)
    model = ee.add_exits(
        keras.Model(inputs, outputs), ["scaled"], policy="max_probability"
    )
    ee.export(model, tmp_path / "cut", cut="exit_0", format="keras")
    edge = tmp_path / "cut" / "segment_0"
    with pytest.raises(ValueError, match="raw_input"):
        EdgeWorker(edge, "127.0.0.1:1", insecure=True)
    EdgeWorker(edge, "127.0.0.1:1", insecure=True, allow_raw_input=True).close()


def unpacked(recorded):
    """Recorded bytes, and behind them all that stands in them compressed."""
    data, found = bytes(recorded), []
    start = data.find(ZSTD_MAGIC)
    while start >= 0:
        with contextlib.suppress(zstandard.ZstdError):
            frame = zstandard.ZstdDecompressor().decompressobj()
            found.append(frame.decompress(data[start:]))
        start = data.find(ZSTD_MAGIC, start + 1)
    return b"".join([data, *found])


def floats_in(recorded, kind):
    """All numbers of a type that stand anywhere in recorded bytes."""
    kind = np.dtype(kind)
    for shift in range(kind.itemsize):
        data = bytes(recorded[shift:])
        data = data[: len(data) // kind.itemsize * kind.itemsize]
        with np.errstate(all="ignore"):
            yield np.frombuffer(data, kind).astype("float64")


def highest_correlation(numbers, row):
    """Largest |correlation| of a row with any run of as many numbers."""
    windows = np.lib.stride_tricks.sliding_window_view(numbers, len(row))
    windows = windows[np.isfinite(windows).all(1)]
    windows = windows - windows.mean(1, keepdims=True)
    row = row - row.mean()
    with np.errstate(all="ignore"):
        found = np.abs(windows @ row) / (
            np.linalg.norm(windows, axis=1) * np.linalg.norm(row)
        )
    return np.nanmax(found)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Rows of 24 numbers: by chance, nothing is like them to 0.99."""
    keras.utils.set_random_seed(2)
    row = keras.Input((24,), name="row")
    x = keras.layers.Dense(32, activation="relu", name="first")(row)
    x = keras.layers.Dense(16, activation="relu", name="second")(x)
    outputs = keras.layers.Dense(3, activation="softmax")(x)
    model = ee.add_exits(
        keras.Model(row, outputs), ["first"], policy="max_probability"
    )
    model.policy.threshold = float("inf")
    folder = tmp_path_factory.mktemp("wide") / "cut"
    ee.export(model, folder, cut="exit_0")
    return folder


@pytest.fixture(scope="module")
def wide_cloud(wide, start_cloud):
    with start_cloud(wide / "segment_1", "--insecure") as cloud:
        yield cloud


@pytest.mark.parametrize("codec", NAMES)
def test_inputs_never_cross(wide, wide_cloud, codec):
    # Over a thousand requests with those of all codecs.
    x = np.random.default_rng(3).normal(size=(72, 24)).astype("float32")
    x[::3, :4] = CANARY
    with Proxy(wide_cloud.address, record=True) as proxy:
        with EdgeWorker(
            wide / "segment_0", proxy.address, insecure=True, codec=codec
        ) as worker:
            for i in range(len(x)):
                result = worker.predict(x[i : i + 1])
                assert result.counts["cloud"] == 1
        recorded = proxy.recorded
    for direction in (UP, DOWN):
        data = unpacked(recorded[direction])
        assert len(data) > 1000
        for kind in ("<f4", "<f2", "<f8"):
            with np.errstate(over="ignore"):
                canary = np.full(2, CANARY, "f8").astype(kind).tobytes()
            assert canary not in data
        for row in x:
            assert row.tobytes() not in data
        for numbers in floats_in(data, KINDS[codec.partition("+")[0]]):
            for row in x[1::3][:5]:
                assert highest_correlation(numbers, row) < 0.99


def test_the_search_finds_an_input_that_does_cross(exported, cloud, rows):
    """A search that never finds anything proves nothing."""
    with Proxy(cloud.address, record=True) as proxy:
        with EdgeWorker(
            exported.edge,
            proxy.address,
            insecure=True,
            offload="input",
            allow_raw_input=True,
            thresholds=float("inf"),
        ) as worker:
            worker.predict(rows[:1])
        data = proxy.recorded[UP]
    assert rows[0].tobytes() in bytes(data)
    assert (
        max(
            highest_correlation(numbers, rows[0].astype("float64"))
            for numbers in floats_in(data, "<f4")
        )
        > 0.999
    )
