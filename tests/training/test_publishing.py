"""A new generation takes over from the old one while both are asked."""

import contextlib
import threading

import keras
import numpy as np
import pytest
from bundling import make_model, set_thresholds
from cloud_serving import Loop
from waiting import poll

import keras_earlyexit as ee
from cloud_worker.config import Settings
from cloud_worker.server import CloudWorker
from cloud_worker.training.publishing import Publisher
from cloud_worker.training.trainer import Trainer
from edge_worker import EdgeWorker, ReloadingWorker
from edge_worker.training.trainer import EdgeTrainer
from keras_earlyexit.bundle import load_bundle
from protos.errors import Refused
from protos.security import ClientSecurity

SECURITY = ClientSecurity(insecure=True)


def data(rows=96):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, rows)
    x = rng.normal(size=(rows, 6)) + 2 * np.eye(4, 6)[y]
    return x.astype("float32"), y


def build():
    keras.utils.set_random_seed(0)
    model = make_model()
    set_thresholds(model, data()[0])
    return model


@contextlib.contextmanager
def both(folder, publishes=True):
    """A cloud worker that answers and trains at one port."""
    cut = folder / "cut"
    model = build()
    ee.export(model, cut, cut="exit_0", format="keras")
    segment = ee.split(model, "exit_0")[1]
    segment.compile(keras.optimizers.Adam(0.05))
    settings = Settings(
        bundle=(cut / "segment_1",),
        listen="127.0.0.1:0",
        insecure=True,
        reload_every_s=0.05,
    )
    loop = Loop()

    async def start():
        publisher = None
        if publishes:
            publisher = Publisher(model, segment, cut / "segment_1", "keras")
        trainer = Trainer.for_segment(
            segment, folder / "ledger", publisher=publisher
        )
        worker = CloudWorker(settings, trainer=trainer)
        await worker.start()
        return worker, trainer

    worker, trainer = loop.run(start())
    try:
        yield worker.address, segment
    finally:
        loop.run(worker.stop(1.0))
        loop.run(trainer.close())
        loop.close()


def edge_trainer(target, folder):
    return EdgeTrainer(
        build(),
        "exit_0",
        target,
        folder / "edge",
        optimizer=keras.optimizers.Adam(0.05),
        security=SECURITY,
        forward="all",
    )


def test_takes_over_under_load_without_a_mixed_or_a_lost_answer(tmp_path):
    x, y = data()
    before = build().predict_exits(x).predictions
    cut, found, errors = tmp_path / "cut", [], []
    stopped = threading.Event()
    with both(tmp_path) as (target, cloud_segment):

        def start():
            return EdgeWorker(
                cut / "segment_0", target, insecure=True, deadline=30.0
            )

        def ask():
            try:
                while not stopped.is_set():
                    found.append(worker.predict(x))
            except BaseException as error:
                errors.append(error)

        with ReloadingWorker(start, cut / "segment_0", 0.05) as worker:
            asking = threading.Thread(target=ask)
            asking.start()
            try:
                with edge_trainer(target, tmp_path) as trainer:
                    trainer.fit(x, y, epochs=4, batch_size=16, verbose=0)
                    name = trainer.publish(cut / "segment_0", "keras")
                    # Again: the same generation, and nothing to take over.
                    assert trainer.publish(tmp_path / "again", "keras") == name
                poll(lambda: worker.reloads == 1 or errors, 60)
                count = len(found)
                poll(lambda: len(found) > count + 2 or errors, 60)
            finally:
                stopped.set()
                asking.join(60)
        merged = ee.merge(trainer.segment, cloud_segment)
    assert not errors
    assert worker.stats["generation"] == name
    after = merged.predict_exits(x).predictions
    assert np.abs(after - before).max() > 0.05
    kinds = []
    for result in found:
        assert "degraded" not in result.answered_by
        is_old, is_new = (
            np.allclose(result.predictions, wanted, atol=1e-4)
            for wanted in (before, after)
        )
        assert is_old != is_new
        kinds.append(is_new)
    # All of the old generation, and then all of the new one.
    assert kinds == sorted(kinds) and kinds[-1] and not kinds[0]
    halves = [load_bundle(cut / f"segment_{i}").manifest for i in (0, 1)]
    assert {half.weights_sha256 for half in halves} == {name}


def test_waits_for_the_other_half(tmp_path):
    x, _ = data()
    cut = tmp_path / "cut"
    with both(tmp_path) as (target, _):

        def start():
            return EdgeWorker(cut / "segment_0", target, insecure=True)

        with ReloadingWorker(start, cut / "segment_0", 0.05) as worker:
            keras.utils.set_random_seed(1)
            other = make_model()
            ee.export(other, tmp_path / "new", cut="exit_0", format="keras")
            (cut / "segment_0").rename(tmp_path / "old")
            (tmp_path / "new" / "segment_0").rename(cut / "segment_0")
            asked = []
            real, worker._start = worker._start, None
            worker._start = lambda: asked.append(1) or real()
            poll(lambda: len(asked) >= 2, 30)
            assert worker.reloads == 0
            assert "degraded" not in worker.predict(x).answered_by
            (cut / "segment_1").rename(tmp_path / "old_1")
            (tmp_path / "new" / "segment_1").rename(cut / "segment_1")
            poll(lambda: worker.reloads == 1, 30)
            result = worker.predict(x)
        assert "degraded" not in result.answered_by
        np.testing.assert_allclose(
            result.predictions, other.predict_exits(x).predictions, atol=1e-4
        )


def test_cloud_that_does_not_write_generations_says_so(tmp_path):
    with both(tmp_path, publishes=False) as (target, _):
        with edge_trainer(target, tmp_path) as trainer:
            with pytest.raises(Refused, match="--publish"):
                trainer.publish(tmp_path / "half", "keras")
        with EdgeTrainer(
            trainer.segment, None, target, tmp_path / "other", security=SECURITY
        ) as other:
            with pytest.raises(ValueError, match="EarlyExitModel"):
                other.publish(tmp_path / "half")


def test_evaluate(tmp_path, capsys):
    import json

    from edge_worker.cli import main

    x, y = data()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    with both(tmp_path) as (target, _):
        arguments = [
            *("evaluate", "--bundle", str(tmp_path / "cut" / "segment_0")),
            *("--cloud", target, "--insecure", "--deadline", "30"),
            *("--data", str(tmp_path / "data.npz")),
        ]
        assert main([*arguments, "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert main(arguments) == 0
        assert "a sample" in capsys.readouterr().out
    expected = build().predict_exits(x)
    right = expected.predictions.argmax(-1) == y
    assert facts["accuracy"] == pytest.approx(right.mean())
    groups = facts["groups"]
    assert groups["exit_0"]["share"] == groups["edge"]["share"] > 0.1
    assert groups["final"]["share"] > 0.1 and facts["bytes_up"] > 0
