"""Choosing between features and inputs, while much else goes on."""

import concurrent.futures

import numpy as np
import pytest
from proxy import Proxy
from waiting import poll

from edge_worker import EdgeWorker
from protos.addresses import split_address

AUTO = {"insecure": True, "offload": "auto", "allow_raw_input": True}


def test_no_answer_is_lost_when_several_threads_start(
    exported, cloud, rows, wanted
):
    for _ in range(5):
        with EdgeWorker(exported.edge, cloud.address, **AUTO) as worker:
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                starts = range(16)
                results = list(
                    pool.map(lambda i: worker.predict(rows[i : i + 9]), starts)
                )
            assert worker.stats["errors"] == {}
            assert worker.stats["offload"] == "input"
        for i, result in enumerate(results):
            np.testing.assert_array_equal(
                result.exit_index, wanted.exit_index[i : i + 9]
            )


def test_an_outage_at_the_start_is_no_choice(exported, cloud, rows):
    with Proxy(cloud.address) as proxy:
        proxy.down()
        with EdgeWorker(exported.edge, proxy.address, **AUTO) as worker:
            assert worker.predict(rows).counts["cloud"] == 0
            proxy.up()
            poll(lambda: worker.is_connected)
            assert worker.predict(rows).counts["degraded"] == 0
            assert worker.stats["offload"] == "input"


def test_features_that_cannot_cross_are_no_choice(exported, cloud, rows):
    with EdgeWorker(
        exported.edge, cloud.address, thresholds=float("inf"), **AUTO
    ) as worker:
        # What is said is what is wrong here, not with the codec.
        with pytest.raises(ValueError, match="answers with NaN in 3 of 3"):
            worker.predict(np.full_like(rows[:3], np.inf))
        assert worker.predict(rows).counts["cloud"] == len(rows)
        assert worker.stats["offload"] == "input"


def test_inputs_that_are_not_taken_any_more(
    exported, start_cloud, rows, wanted
):
    with (
        start_cloud(
            exported.whole, "--insecure", "--allow-raw-input"
        ) as before,
        start_cloud(exported.whole, "--insecure") as after,
        Proxy(before.address) as proxy,
        EdgeWorker(
            exported.edge, proxy.address, deadline=20.0, **AUTO
        ) as worker,
    ):
        assert worker.predict(rows).counts["degraded"] == 0
        assert worker.stats["offload"] == "input"
        # As if it were started anew, without raw input, at the same address.
        proxy.down()
        proxy.target = split_address(after.address)
        proxy.up()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            results = list(pool.map(worker.predict, [rows] * 8))
        poll(lambda: worker.predict(rows[:50]).counts["degraded"] == 0, 20)
        assert worker.stats["offload"] == "features"
        results.append(worker.predict(rows))
    for result in results:
        right = result.answered_by != "degraded"
        np.testing.assert_array_equal(
            result.exit_index[right], wanted.exit_index[right]
        )
    assert right.all()
