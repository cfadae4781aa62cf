"""A changed bundle comes in while edges work with the old one."""

import asyncio
import shutil
import threading

import grpc
import numpy as np
import pytest
from cloud_serving import answers_of, features, identity_of, request_of, value
from waiting import poll

import keras_earlyexit as ee
from protos.errors import VersionMismatch, from_rpc_error

FEATURE = features(8)


@pytest.fixture
def source(folders, tmp_path):
    """A bundle that `put` exchanges for another."""
    source = tmp_path / "served"
    shutil.copytree(folders / "whole", source)
    return source


@pytest.fixture
def put(source, folders, tmp_path):
    def exchange(name):
        shutil.copytree(folders / name, tmp_path / f"new_{name}")
        source.rename(tmp_path / f"before_{name}")
        (tmp_path / f"new_{name}").rename(source)

    return exchange


@pytest.fixture
def bundles(folders):
    return {
        name: ee.load_bundle(folders / name)
        for name in ("whole", "other", "moved")
    }


def ask(peer, bundle, rows=FEATURE):
    return peer.infer(request_of(identity_of(bundle), rows))


def test_a_new_generation_comes_and_the_old_one_stays(
    serve, client, source, put, bundles
):
    worker = serve(source, reload_every_s=0.05, drain_s=600)
    peer = client(worker.address)
    hello = identity_of(bundles["other"])
    assert not peer.hello(hello).accepted
    put("other")
    poll(lambda: peer.hello(hello).accepted)
    for name in ("whole", "other"):
        assert peer.hello(identity_of(bundles[name])).accepted
        expected = bundles[name].from_stage(1).predict_exits(FEATURE)
        found = answers_of(ask(peer, bundles[name]))
        np.testing.assert_allclose(found[0], expected.predictions, atol=1e-5)
    assert value(worker.metrics, "generations") == 2
    assert value(worker.metrics, "reloads_total", outcome="loaded") == 1


def test_the_old_generation_goes_when_nobody_uses_it(
    serve, client, source, put, bundles
):
    worker = serve(source, reload_every_s=0.05, drain_s=0.2)
    peer = client(worker.address)
    put("other")
    poll(lambda: value(worker.metrics, "reloads_total", outcome="loaded"))
    poll(lambda: value(worker.metrics, "generations") == 1)
    with pytest.raises(grpc.RpcError) as error:
        ask(peer, bundles["whole"])
    assert isinstance(from_rpc_error(error.value), VersionMismatch)
    (found, *_) = peer.hello(identity_of(bundles["whole"])).differences
    assert found.what == "weights"
    assert found.edge == bundles["whole"].manifest.weights_sha256
    assert found.cloud == bundles["other"].manifest.weights_sha256
    assert ask(peer, bundles["other"])


def test_a_bad_bundle_leaves_the_old_one_serving(
    serve, client, source, bundles, caplog
):
    worker = serve(source, reload_every_s=0.05, drain_s=0.0)
    peer = client(worker.address)
    stage = next(source.glob("*.tflite"))
    kept = stage.read_bytes()
    stage.write_bytes(kept[: len(kept) // 2])
    poll(lambda: value(worker.metrics, "reloads_total", outcome="failed"))
    poll(lambda: "not reloaded" in caplog.text)
    assert ask(peer, bundles["whole"])
    # Each change is tried once, and the next one is tried again.
    stage.write_bytes(kept)
    poll(lambda: value(worker.metrics, "reloads_total", outcome="loaded"))
    assert value(worker.metrics, "reloads_total", outcome="failed") == 1
    assert ask(peer, bundles["whole"])


def test_only_when_asked(serve, client, source, put, bundles, loop):
    worker = serve(source, reload_every_s=0)
    peer = client(worker.address)
    put("moved")
    assert not peer.hello(identity_of(bundles["moved"])).accepted

    async def reload():
        worker.reload()
        await asyncio.sleep(0)

    loop.run(reload())
    poll(lambda: peer.hello(identity_of(bundles["moved"])).accepted)


def test_at_most_so_many_generations(serve, client, source, put, bundles):
    worker = serve(source, reload_every_s=0.05, drain_s=600, max_generations=2)
    peer = client(worker.address)
    for name in ("other", "moved"):
        put(name)
        hello = identity_of(bundles[name])
        poll(lambda hello=hello: peer.hello(hello).accepted)
    assert value(worker.metrics, "generations") == 2
    assert not peer.hello(identity_of(bundles["whole"])).accepted


def test_no_answer_is_of_two_generations(serve, client, source, put, bundles):
    worker = serve(source, reload_every_s=0.05, drain_s=0.5, max_batch=32)
    names = ("whole", "other")
    expected = {
        name: bundles[name].from_stage(1).predict_exits(FEATURE).predictions
        for name in names
    }
    assert not np.allclose(expected["whole"], expected["other"], atol=1e-3)
    over, counts, wrong = threading.Event(), dict.fromkeys(names, 0), []

    def edge(number):
        """Works with what is served, and says hello again when told to."""
        peer, name = client(worker.address), "whole"
        while not over.is_set():
            try:
                reply = ask(peer, bundles[name])
            except grpc.RpcError as error:
                found = from_rpc_error(error)
                if not isinstance(found, VersionMismatch):
                    wrong.append(found)
                    return
                assert not peer.hello(identity_of(bundles[name])).accepted
                name = "other"
                continue
            found = answers_of(reply)[0]
            if not np.allclose(found, expected[name], atol=1e-5):
                wrong.append(name)
            counts[name] += 1

    threads = [threading.Thread(target=edge, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    poll(lambda: counts["whole"] > 200)
    put("other")
    # Half of the edges learn of it while the others still use the old one.
    newcomer = client(worker.address)
    poll(lambda: newcomer.hello(identity_of(bundles["other"])).accepted)
    before = counts["whole"]
    for _ in range(200):
        found = answers_of(ask(newcomer, bundles["other"]))[0]
        np.testing.assert_allclose(found, expected["other"], atol=1e-5)
    poll(lambda: counts["whole"] > before)
    over.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert value(worker.metrics, "generations") == 2
