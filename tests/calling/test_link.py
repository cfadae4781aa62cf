"""The link to the next worker, over real connections."""

import dataclasses
import threading
import time

import numpy as np
import pytest
from calling.serving import WIDTH, Gate, Servicer, Serving, make_bundles
from proxy import DOWN, UP, Proxy
from waiting import poll

from protos import identity
from protos.calling import Link, LinkOptions, asking
from protos.errors import (
    CircuitOpen,
    CloudFailed,
    CloudUnavailable,
    DeadlinePassed,
    NotAllowed,
    Overloaded,
    VersionMismatch,
    WireError,
)
from protos.security import ClientSecurity

# The bar is 0.05 s where nothing else runs.
SLACK_S = 0.15
INSECURE = ClientSecurity(insecure=True)


@pytest.fixture
def bundles():
    return make_bundles()


@pytest.fixture
def serving(bundles):
    with Serving(Servicer(bundles[1])) as serving:
        yield serving


@pytest.fixture
def proxy(serving):
    with Proxy(serving.address) as proxy:
        yield proxy


@pytest.fixture
def link(bundles, proxy):
    with Link.of(bundles[0].manifest, proxy.address, INSECURE) as link:
        yield link


@pytest.fixture
def feature(bundles):
    x = np.random.default_rng(1).normal(size=(300, WIDTH)).astype("float32")
    return {"feature": bundles[0].route(x, thresholds=np.inf).feature}


def timed(call, *args, **kwargs):
    """Seconds until a call raises, and what it raises."""
    started = time.monotonic()
    with pytest.raises(Exception) as raised:
        call(*args, **kwargs)
    return time.monotonic() - started, raised.value


def few(feature, rows=3):
    return {"feature": feature["feature"][:rows]}


def test_answers_as_the_bundle_does(link, bundles, feature):
    wanted = bundles[1].predict_exits(feature["feature"])
    found = link.infer(feature)
    np.testing.assert_allclose(found.predictions, wanted.predictions, 1e-6)
    np.testing.assert_array_equal(found.exit_index, wanted.exit_index)
    np.testing.assert_array_equal(found.score, wanted.score)
    assert not found.degraded.any()
    assert len(found) == 300
    assert set(found.seconds) == {
        "encode", "link", "cloud_queue", "cloud_compute", "decode"
    }  # fmt: skip


def test_batches_are_split_as_the_peer_allows(link, serving, feature):
    found = link.infer(feature)
    sizes = [r.tensors[0].shape[0] for r in serving.servicer.requests]
    assert sizes == [64, 64, 64, 64, 44]
    requests = [r.ByteSize() for r in serving.servicer.requests]
    assert found.bytes_up == sum(requests)
    assert found.bytes_down > 0


def test_requests_are_of_a_size_that_lets_others_pass(
    link, serving, feature, monkeypatch
):
    monkeypatch.setattr(asking, "_MAX_REQUEST_BYTES", 10 * WIDTH * 4)
    assert len(link.infer(few(feature, 25))) == 25
    sizes = [r.tensors[0].shape[0] for r in serving.servicer.requests]
    assert sizes == [10, 10, 5]


@pytest.mark.parametrize(
    ("width", "max_rows"), [(4096, 256), (224 * 224 * 64, 64), (1 << 26, 2)]
)
def test_features_of_any_size(bundles, width, max_rows):
    large = identity.Feature("feature", (None, width), "float32")
    known = identity.Identity.of(bundles[0].manifest)
    link = Link(
        "127.0.0.1:1",
        dataclasses.replace(known, feature=(large,)),
        INSECURE,
        prediction=known.feature[0],
        num_exits=3,
    )
    assert link.options.max_rows == max_rows
    assert width * 4 * max_rows < link.options.max_message_bytes < 1 << 31


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"other": np.zeros((2, WIDTH))},
        {"feature": np.zeros((2, WIDTH)), "carry": np.zeros((2, 1))},
        {"feature": np.zeros((0, WIDTH))},
        {"feature": np.float32(0)},
    ],
)
def test_arrays_that_are_not_the_features(link, arrays):
    with pytest.raises(ValueError, match="Expected arrays \\['feature'\\]"):
        link.infer(arrays)


def test_requests_are_answered_in_any_number_at_once(link, bundles, feature):
    wanted = bundles[1].predict_exits(feature["feature"])
    futures = [
        link.submit({"feature": feature["feature"][i : i + 1]})
        for i in range(100)
    ]
    for i, future in enumerate(futures):
        np.testing.assert_allclose(
            future.result(60).predictions[0], wanted.predictions[i], 1e-6
        )


def test_ids_are_unique_and_keep_where_they_come_from(link, serving, feature):
    link.infer(feature, request_id="a" * 32)
    link.infer(few(feature))
    ids = [request.request_id for request in serving.servicer.requests]
    assert len(set(ids)) == len(ids)
    assert all(x.startswith("a" * 32 + ".") for x in ids[:5])
    assert len(ids[5]) == 32


def test_the_deadline_travels(link, serving, feature):
    link.infer(few(feature), deadline_s=0.7)
    (request,) = serving.servicer.requests
    assert 500 < request.timeout_ms <= 700


def test_tokens_and_ids_are_shown(bundles, serving, feature):
    security = ClientSecurity(insecure=True, token="secret")
    options = {"edge_id": "edge-7"}
    with Link.of(
        bundles[0].manifest, serving.address, security, **options
    ) as link:
        link.infer(few(feature))
    (hello,) = serving.servicer.hellos
    assert hello.edge_id == "edge-7"
    (metadata,) = serving.servicer.metadata
    assert metadata["authorization"] == "Bearer secret"


def test_nobody_there(bundles, feature):
    with Link.of(bundles[0].manifest, "127.0.0.1:1", INSECURE) as link:
        assert link.connect(2) is False
        assert link.circuit != "closed"
        seconds, error = timed(link.infer, few(feature))
        assert isinstance(error, CircuitOpen)
        assert seconds < SLACK_S
        assert isinstance(link.last_error, CloudUnavailable)


@pytest.mark.parametrize("direction", [UP, DOWN, None])
def test_a_blackhole_costs_one_deadline_and_then_nothing(
    link, proxy, feature, direction
):
    link.infer(few(feature))
    proxy.set(direction, blackhole=True)
    seconds, error = timed(link.infer, few(feature), deadline_s=0.8)
    assert isinstance(error, DeadlinePassed)
    assert 0.8 <= seconds < 0.8 + SLACK_S
    for _ in range(20):
        seconds, error = timed(link.infer, few(feature), deadline_s=0.8)
        assert isinstance(error, CircuitOpen)
        assert seconds < SLACK_S
    proxy.heal()
    assert poll(lambda: link.is_connected) < 2
    assert len(link.infer(few(feature))) == 3


def test_a_short_deadline_does_not_open_the_circuit(link, serving, feature):
    link.infer(few(feature))
    gate = serving.servicer.before = Gate()
    seconds, error = timed(link.infer, few(feature), deadline_s=0.1)
    assert isinstance(error, DeadlinePassed)
    assert 0.1 <= seconds < 0.1 + SLACK_S
    assert link.circuit == "closed"
    gate.open()


def test_a_reset_is_not_seen(link, proxy, serving, feature):
    for _ in range(5):
        proxy.reset()
        for _ in range(20):
            assert len(link.infer(few(feature))) == 3
    assert link.stats["attempts"] <= 105
    assert len(serving.servicer.hellos) == proxy.num_connections
    assert proxy.num_connections > 1


def test_in_flight_when_the_connection_breaks(link, proxy, serving, feature):
    link.infer(few(feature))
    gate = serving.servicer.before = Gate()
    future = link.submit(few(feature), deadline_s=5)
    assert gate.entered.acquire(timeout=60)
    proxy.reset()
    serving.servicer.before = lambda request: None
    assert len(future.result(60)) == 3
    assert link.stats["retries"] == 1
    gate.open()


def test_slices_and_latency_change_nothing(link, proxy, bundles, feature):
    proxy.set(slice_bytes=7, latency_s=0.02)
    wanted = bundles[1].predict_exits(feature["feature"])
    found = link.infer(feature, deadline_s=10)
    np.testing.assert_array_equal(found.exit_index, wanted.exit_index)


def test_down_and_up(link, proxy, feature):
    link.infer(few(feature))
    proxy.down()
    seconds, error = timed(link.infer, few(feature))
    assert isinstance(error, CloudUnavailable)
    assert seconds < 2
    assert poll(lambda: link.circuit != "closed") < 1
    proxy.up()
    assert poll(lambda: link.is_connected) < 2
    assert len(link.infer(few(feature))) == 3


def test_a_restarted_worker_with_other_weights_is_refused(
    link, serving, proxy, feature
):
    link.infer(few(feature))
    serving.stop()
    _, other, _ = make_bundles(weights="f")
    serving.servicer, right = Servicer(other), serving.servicer
    serving.start()
    _, error = timed(link.infer, few(feature), deadline_s=5)
    assert isinstance(error, VersionMismatch)
    assert [x.what for x in error.differences] == ["weights"]
    assert "f" * 64 in str(error) and "0" * 64 in str(error)
    seconds, again = timed(link.infer, few(feature))
    assert again is error
    assert seconds < SLACK_S
    serving.stop()
    serving.servicer = right
    serving.start()
    poll(lambda: link.is_connected)
    assert len(link.infer(few(feature))) == 3


def test_weights_that_change_without_a_reconnect(link, serving, feature):
    link.infer(few(feature))
    generation = serving.servicer.identity.generation

    def before(request):
        raise VersionMismatch("not served any more")

    serving.servicer.before = before
    _, error = timed(link.infer, few(feature), deadline_s=5)
    assert isinstance(error, VersionMismatch)
    assert len(serving.servicer.hellos) == 2
    assert {r.generation for r in serving.servicer.requests} == {generation}
    assert len(serving.servicer.requests) == 3


def test_another_major_version_is_refused(link, serving):
    serving.servicer.protocol = (identity.PROTOCOL[0] + 1, 0)
    with pytest.raises(VersionMismatch, match="protocol"):
        link.connect()


def test_another_minor_version_works(link, serving, feature):
    serving.servicer.protocol = (identity.PROTOCOL[0], 99)
    assert len(link.infer(few(feature))) == 3


def test_an_overloaded_worker_is_left_alone(link, serving, feature):
    asked = []

    def before(request):
        asked.append(time.monotonic())
        if len(asked) < 3:
            raise Overloaded("full", 0.2)

    serving.servicer.before = before
    assert len(link.infer(few(feature), deadline_s=5)) == 3
    assert all(np.diff(asked) >= 0.2)


def test_a_worker_that_is_full_for_longer_than_the_deadline(
    link, serving, feature
):
    def before(request):
        raise Overloaded("full", 1.5)

    serving.servicer.before = before
    for _ in range(2):
        seconds, error = timed(link.infer, few(feature), deadline_s=1)
        assert isinstance(error, Overloaded)
        assert seconds < 0.5
    assert len(serving.servicer.requests) == 1
    assert link.circuit == "closed"


@pytest.mark.parametrize(
    ("raised", "wanted"),
    [
        (RuntimeError("/home/me/secret"), CloudFailed),
        (WireError("no"), WireError),
        (NotAllowed("no"), NotAllowed),
    ],
)
def test_what_would_fail_again_is_not_tried_again(
    link, serving, feature, raised, wanted
):
    def before(request):
        raise raised

    serving.servicer.before = before
    _, error = timed(link.infer, few(feature))
    assert type(error) is wanted
    assert "secret" not in str(error)
    assert len(serving.servicer.requests) == 1
    assert link.circuit == "closed"


def test_replies_that_lie_are_refused(link, serving, feature):
    servicer, right = serving.servicer, serving.servicer._answer

    def lies():
        def rows(reply):
            reply.predictions.shape[0] -= 1

        def exits(reply):
            reply.exit_index.data = bytes(len(reply.exit_index.data))

        def beyond(reply):
            reply.degraded.append(3)

        def empty(reply):
            for field in ("predictions", "exit_index", "score"):
                reply.ClearField(field)

        return rows, exits, beyond, empty

    for lie in lies():
        servicer._answer = lambda request, reply, lie=lie: (
            right(request, reply),
            lie(reply),
        )
        _, error = timed(link.infer, few(feature))
        assert isinstance(error, WireError), lie
    servicer._answer = right
    assert len(link.infer(few(feature))) == 3


def test_closing_ends_calls_under_way(link, serving, feature):
    link.infer(few(feature))
    gate = serving.servicer.before = Gate()
    future = link.submit(few(feature), deadline_s=20)
    assert gate.entered.acquire(timeout=60)
    started = time.monotonic()
    link.close()
    with pytest.raises(CloudUnavailable):
        future.result(1)
    assert time.monotonic() - started < 1
    gate.open()
    with pytest.raises(CloudUnavailable, match="close"):
        link.infer(few(feature))


def test_threads_end_with_the_link(bundles, serving, feature):
    def ours():
        return [x for x in threading.enumerate() if x.name.startswith("split-")]

    assert ours() == []
    with Link.of(bundles[0].manifest, serving.address, INSECURE) as link:
        link.submit(few(feature)).result(5)
        assert ours()
    poll(lambda: not ours())


def test_options_that_cannot_be_right(bundles):
    manifest = bundles[0].manifest
    with pytest.raises(ValueError, match="codec"):
        Link.of(manifest, "127.0.0.1:1", INSECURE, codec="float8")
    with pytest.raises(ValueError, match="loopback"):
        Link.of(manifest, "192.0.2.1:1", INSECURE)
    with pytest.raises(ValueError, match="host:port"):
        Link.of(manifest, "127.0.0.1", INSECURE)
    assert LinkOptions().deadline_s == 2
