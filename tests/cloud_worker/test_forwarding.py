"""Three tiers: what a worker cannot answer goes on to a further one."""

import numpy as np
import pytest
from cloud_serving import ID, answers_of, identity_of, request_of, value
from waiting import poll

import keras_earlyexit as ee
from cloud_worker.config import Settings
from cloud_worker.forwarding import make


@pytest.fixture(scope="module")
def bundles(folders):
    return [ee.load_bundle(folders / "cut" / f"segment_{i}") for i in range(3)]


@pytest.fixture
def forwarder():
    return lambda address, **options: make(
        Settings(
            bundle=("here",),
            forward=address,
            **{"forward_insecure": True, **options},
        )
    )


@pytest.fixture
def tiers(serve, folders, forwarder):
    """A worker with the last segment, and one in front of it."""
    last = serve(folders / "cut" / "segment_2")
    middle = serve(
        folders / "cut" / "segment_1", forwarder=forwarder(last.address)
    )
    return middle, last


def test_three_tiers_answer_as_the_whole(
    tiers, client, bundles, folders, x, caplog
):
    caplog.set_level("INFO", "cloud_worker")
    middle, last = tiers
    expected = ee.load_bundle(folders / "whole").predict_exits(x)
    here = bundles[0].route(x)
    request = request_of(identity_of(bundles[0], None), here.feature)
    reply = client(middle.address).infer(request)
    predictions, exit_index, score = answers_of(reply)
    rows = here.staying
    np.testing.assert_allclose(
        predictions, expected.predictions[rows], atol=1e-5
    )
    np.testing.assert_array_equal(exit_index, expected.exit_index[rows])
    np.testing.assert_allclose(score, expected.score[rows], atol=1e-5)
    assert set(exit_index) == {1, 2} and not reply.degraded
    sent = np.sum(exit_index == 2)
    assert value(middle.metrics, "forwarded_rows_total") == sent
    assert value(last.metrics, "rows_total") == sent
    # Both tiers log the request under the id that the edge gave it.
    ids = [
        record.fields["request_id"]
        for record in caplog.records
        if record.message == "request"
    ]
    assert len(ids) == 2 and all(id.startswith(ID) for id in ids)


def degraded_rows(peer, bundles, x, **options):
    """Asks for everything, and returns what was not the whole's answer."""
    here = bundles[0].route(x)
    expected = bundles[1].predict_exits(here.feature)
    staying = bundles[1].route(here.feature).staying
    identity = identity_of(bundles[0], None)
    reply = peer.infer(request_of(identity, here.feature, **options))
    predictions, exit_index, _ = answers_of(reply)
    np.testing.assert_allclose(predictions, expected.predictions, atol=1e-5)
    assert set(exit_index) == {1} and len(staying)
    assert list(reply.degraded) == staying.tolist()
    return staying


def test_without_a_further_worker(serve, client, folders, bundles, x, caplog):
    worker = serve(folders / "cut" / "segment_1")
    assert "answered by the last exit" in caplog.text
    rows = degraded_rows(client(worker.address), bundles, x)
    assert value(worker.metrics, "degraded_rows_total") == len(rows)


def test_a_further_worker_that_is_gone(
    serve, client, folders, bundles, x, forwarder, caplog
):
    worker = serve(
        folders / "cut" / "segment_1", forwarder=forwarder("127.0.0.1:1")
    )
    (found,) = [r for r in caplog.records if "last exit" in r.message]
    assert "no answer" in found.fields["reason"]
    degraded_rows(client(worker.address), bundles, x, timeout_ms=1000)


def test_a_further_worker_with_another_model(
    serve, client, folders, bundles, x, forwarder, caplog
):
    last = serve(folders / "other")
    worker = serve(
        folders / "cut" / "segment_1", forwarder=forwarder(last.address)
    )
    (found,) = [r for r in caplog.records if "last exit" in r.message]
    assert "weights" in found.fields["reason"]
    degraded_rows(client(worker.address), bundles, x)


def test_a_further_worker_that_comes_and_goes(
    serve, serve_for_a_while, client, folders, bundles, x, forwarder
):
    last = folders / "cut" / "segment_2"
    here = bundles[0].route(x)
    request = request_of(identity_of(bundles[0], None), here.feature)
    with serve_for_a_while(last) as first:
        address = first.address
        middle = serve(
            folders / "cut" / "segment_1", forwarder=forwarder(address)
        )
        peer = client(middle.address)
        assert not peer.infer(request).degraded
    poll(lambda: peer.infer(request).degraded)
    serve(last, listen=address)
    poll(lambda: not peer.infer(request).degraded)


def test_settings():
    assert make(Settings(bundle=("here",))) is None
    for wrong in (
        {"forward": "example.org:1", "forward_insecure": True},
        {"forward": "127.0.0.1", "forward_insecure": True},
        {"forward": "127.0.0.1:1", "forward_cert": "cert.pem"},
        {
            "forward": "127.0.0.1:1",
            "forward_insecure": True,
            "forward_codec": "int4",
        },
    ):
        with pytest.raises(ValueError, match="Expected"):
            make(Settings(bundle=("here",), **wrong))
