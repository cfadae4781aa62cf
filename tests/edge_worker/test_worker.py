"""The edge worker with a real cloud worker, near, far and gone."""

import asyncio
import concurrent.futures
import threading
import time

import numpy as np
import pytest
from proxy import DOWN, UP
from waiting import poll

import keras_earlyexit as ee
from edge_worker import AsyncEdgeWorker, EdgeWorker
from protos.errors import VersionMismatch

# The bar is 0.05 s where nothing else runs.
SLACK_S = 0.15
NOBODY = "127.0.0.1:1"


def check(result, wanted, rows=slice(None)):
    """Compares answers with those of the model that is not cut."""
    np.testing.assert_array_equal(result.exit_index, wanted.exit_index[rows])
    np.testing.assert_allclose(
        result.predictions, wanted.predictions[rows], atol=1e-4
    )
    np.testing.assert_allclose(result.score, wanted.score[rows], atol=1e-4)
    np.testing.assert_array_equal(
        result.relative_cost, wanted.relative_cost[rows]
    )


def timed(worker, x, **options):
    started = time.monotonic()
    result = worker.predict(x, **options)
    return time.monotonic() - started, result


@pytest.mark.parametrize("batch_size", [None, 1, 7, 1000])
def test_answers_as_the_model_that_is_not_cut(worker, rows, wanted, batch_size):
    result = worker.predict(rows, batch_size)
    check(result, wanted)
    left = wanted.exit_index == 0
    assert 0 < left.sum() < len(rows)
    np.testing.assert_array_equal(
        result.answered_by, np.where(left, "edge", "cloud")
    )
    assert set(wanted.exit_index) == {0, 1, 2}
    assert result.bytes_up > 32 * (~left).sum() and result.bytes_down > 0
    assert result.seconds["edge"] > 0 and result.seconds["link"] > 0
    assert result.counts["cloud"] == (~left).sum()
    assert "cloud" in repr(result)


def test_the_last_batch_takes_no_other_thread(exported, cloud, rows):
    def others():
        names = (thread.name for thread in threading.enumerate())
        return [name for name in names if name.startswith("split-calls")]

    before = others()
    with EdgeWorker(exported.edge, cloud.address, insecure=True) as worker:
        worker.predict(rows, batch_size=len(rows))
        assert others() == before
        worker.predict(rows, batch_size=-(-len(rows) // 2))
        assert len(others()) > len(before)


def test_no_samples(worker, rows):
    result = worker.predict(rows[:0])
    assert len(result) == 0 and result.predictions.shape == (0, 4)
    assert result.bytes_up == 0


def test_what_is_no_input_is_refused(worker, rows):
    with pytest.raises(ValueError, match="row"):
        worker.predict(rows[:, :3])
    with pytest.raises(ValueError, match="NaN"):
        worker.predict(rows * np.nan)
    with pytest.raises(ValueError, match="batch_size"):
        worker.predict(rows, batch_size=0)


def test_several_threads(worker, rows, wanted):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda i: worker.predict(rows[i : i + 9], 2), range(100))
        )
    for i, result in enumerate(found):
        check(result, wanted, slice(i, i + 9))
    assert worker.stats["rows"] == 900
    assert worker.stats["answered_by"]["degraded"] == 0


def test_asynchronous(exported, cloud, rows, wanted):
    async def main():
        async with AsyncEdgeWorker(
            exported.edge, cloud.address, insecure=True
        ) as worker:
            found = await asyncio.gather(
                *(worker.predict(rows[i : i + 5]) for i in range(50))
            )
            assert worker.worker.stats["calls"] == 50
        return found

    for i, result in enumerate(asyncio.run(main())):
        check(result, wanted, slice(i, i + 5))


def test_without_a_cloud_from_the_start(exported, rows):
    edge = ee.load_bundle(exported.edge)
    alone = edge.predict_exits(rows)
    started = time.monotonic()
    with EdgeWorker(edge, NOBODY, insecure=True) as worker:
        assert time.monotonic() - started < 2 + SLACK_S
        seconds, result = timed(worker, rows)
        assert seconds < 2
        check(result, alone)
        staying = edge.route(rows).staying
        assert set(result.answered_by[staying]) == {"degraded"}
        assert result.counts["edge"] == len(rows) - len(staying)
        assert worker.stats["errors"] == {"CircuitOpen": 4}
        assert not worker.is_connected


def test_the_cloud_comes_later(exported, proxy, rows, wanted):
    proxy.down()
    with EdgeWorker(exported.edge, proxy.address, insecure=True) as worker:
        assert worker.predict(rows).counts["degraded"] > 0
        proxy.up()
        assert poll(lambda: worker.is_connected) < 2
        check(worker.predict(rows), wanted)


@pytest.mark.parametrize("direction", [UP, DOWN, None])
def test_a_blackhole(worker, proxy, rows, wanted, direction):
    check(worker.predict(rows), wanted)
    proxy.set(direction, blackhole=True)
    seconds, result = timed(worker, rows[:20])
    assert seconds < 2 + SLACK_S
    assert result.counts["degraded"] == (wanted.exit_index[:20] > 0).sum()
    for _ in range(20):
        seconds, result = timed(worker, rows[:20])
        assert seconds < SLACK_S
        assert result.counts["cloud"] == 0
    proxy.heal()
    assert poll(lambda: worker.predict(rows[:20]).counts["cloud"]) < 2
    check(worker.predict(rows), wanted)


def test_a_blackhole_under_many_batches(worker, proxy, rows):
    worker.predict(rows)
    proxy.set(blackhole=True)
    seconds, result = timed(worker, np.tile(rows, (10, 1)), batch_size=10)
    assert seconds < 3
    assert len(result) == 2000 and result.counts["cloud"] == 0


def test_resets_lose_nothing(worker, proxy, rows, wanted):
    for i in range(60):
        if i % 20 == 10:
            proxy.reset()
        result = worker.predict(rows[i : i + 3])
        check(result, wanted, slice(i, i + 3))
    assert worker.stats["answered_by"]["degraded"] == 0
    link = worker.stats["link"]
    assert link["attempts"] <= 1.5 * link["calls"]


def test_a_slow_and_narrow_link(exported, proxy, rows, wanted):
    proxy.set(latency_s=0.1, bytes_per_s=125_000, slice_bytes=7)
    with EdgeWorker(exported.edge, proxy.address, insecure=True) as worker:
        for i in range(5):
            seconds, result = timed(worker, rows[i : i + 8])
            assert seconds < 2
            check(result, wanted, slice(i, i + 8))


def test_connections_that_are_cut(worker, proxy, rows, wanted):
    proxy.set(DOWN, cut_after=2000)
    proxy.reset()
    for i in range(40):
        result = worker.predict(rows[i : i + 5])
        here = result.answered_by != "degraded"
        np.testing.assert_array_equal(
            result.exit_index[here], wanted.exit_index[i : i + 5][here]
        )
    proxy.heal()
    poll(lambda: worker.predict(rows[:20]).counts["cloud"])


def test_thresholds_of_its_own(exported, cloud, rows, wanted):
    bundle = ee.load_bundle(exported.edge)
    with EdgeWorker(
        bundle, cloud.address, insecure=True, thresholds=float("inf")
    ) as worker:
        result = worker.predict(rows)
    assert result.counts == {"edge": 0, "cloud": len(rows), "degraded": 0}
    later = ee.load_bundle(exported.whole).from_stage(1)
    feature = bundle.route(rows, float("inf")).feature
    check(result, later.predict_exits(feature))
    np.testing.assert_array_equal(bundle.thresholds, bundle.manifest.thresholds)


def test_the_share_that_is_sent_on_has_a_bound(exported, cloud, rows):
    with EdgeWorker(
        exported.edge,
        cloud.address,
        insecure=True,
        thresholds=float("inf"),
        max_offload_share=0.25,
    ) as worker:
        results = [worker.predict(rows) for _ in range(20)]
        stats = worker.stats
    sent = sum(result.counts["cloud"] for result in results)
    assert 0.25 * 4000 <= sent <= 0.25 * 4000 + 64
    assert stats["rows_over_cap"] == 4000 - sent
    assert stats["answered_by"]["degraded"] == 4000 - sent
    assert stats["errors"] == {}


def test_another_model_is_refused_at_the_start(
    exported, start_cloud, rows, tmp_path
):
    import bundling

    other = bundling.make_model()
    ee.export(other, tmp_path / "other", cut="exit_0")
    with start_cloud(tmp_path / "other" / "segment_1", "--insecure") as cloud:
        with pytest.raises(VersionMismatch) as raised:
            EdgeWorker(exported.edge, cloud.address, insecure=True)
    assert "weights" in {x.what for x in raised.value.differences}
    assert ee.load_bundle(exported.edge).manifest.weights_sha256 in str(
        raised.value
    )


@pytest.mark.parametrize("segment", ["cloud", "whole"])
def test_a_bundle_with_nothing_to_send_on_is_refused(exported, segment):
    with pytest.raises(ValueError, match="first segment"):
        EdgeWorker(getattr(exported, segment), NOBODY, insecure=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"deadline": 0}, "deadline=0"),
        ({"deadline": float("nan")}, "deadline=nan"),
        ({"codec": "gzip"}, "codec"),
        ({"offload": "all"}, "offload='all'"),
        ({"offload": "input"}, "allow_raw_input"),
        ({"offload_rows_per_s": -1}, "offload_rows_per_s=-1"),
        ({"max_offload_share": 2}, "max_offload_share=2"),
        ({"max_in_flight": 0}, "max_in_flight=0"),
        ({"cert": "a.pem"}, "cert"),
    ],
)
def test_settings_that_cannot_be_right(exported, settings, message):
    with pytest.raises(ValueError, match=message):
        EdgeWorker(
            exported.edge, NOBODY, **{"insecure": "cert" not in settings},
            **settings,
        )  # fmt: skip


def test_no_plain_text_leaves_the_machine(exported):
    with pytest.raises(ValueError, match="loopback"):
        EdgeWorker(exported.edge, "192.0.2.1:50051", insecure=True)
