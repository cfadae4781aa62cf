"""Batches run in threads, and every request gets its own rows back."""

import asyncio
import dataclasses
import threading
import time

import numpy as np
import pytest
from calling.serving import make_bundles
from cloud_serving import Gated, features

from cloud_worker.batching import Queue
from cloud_worker.running import Runner, split
from keras_earlyexit.bundle.answering import Bundle
from protos.errors import DeadlinePassed, Overloaded


@dataclasses.dataclass(eq=False)
class Entrance:
    bundle: Bundle
    queue: Queue


def an_entrance(bundle=None, **options):
    options = {"max_rows": 64, "max_batch": 16, **options}
    return Entrance(bundle or later_stages(), Queue(**options))


def later_stages(count=2):
    """A bundle of the stages behind a cut, whose first one can wait."""
    bundle = make_bundles()[1]
    manifest = dataclasses.replace(
        bundle.manifest, stages=bundle.manifest.stages[:count]
    )
    return Gated(Bundle(manifest, bundle.stages[:count], "0" * 64)).bundle


def later(seconds=60):
    return time.monotonic() + seconds


async def until(condition):
    end = later(20)
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


def running(test, **options):
    """Runs a coroutine function with a `Runner`."""

    async def body():
        runner = Runner(**options)
        try:
            await asyncio.wait_for(test(runner), 60)
        finally:
            runner.close()

    asyncio.run(body())


def same(ran, bundle, x):
    expected = bundle.route(x)
    for name in ("exit_index", "staying"):
        np.testing.assert_array_equal(
            getattr(ran.routed, name), getattr(expected, name)
        )
    for name in ("predictions", "score", "feature"):
        here, there = getattr(ran.routed, name), getattr(expected, name)
        assert (here is None) == (there is None)
        if here is not None:
            np.testing.assert_allclose(here, there, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2])
def test_requests_that_ran_together_get_their_own_rows(count):
    entrance = an_entrance(later_stages(count))
    batches = [features(count, seed=count) for count in (1, 5, 2, 7, 16)]

    async def test(runner):
        stage = entrance.bundle.stages[0]
        stage.opened.clear()
        first = asyncio.create_task(
            runner.run(entrance, (features(1),), later())
        )
        await until(lambda: stage.rows)
        tasks = [
            asyncio.create_task(runner.run(entrance, (x,), later()))
            for x in batches
        ]
        await until(lambda: runner.rows == 31)
        stage.opened.set()
        found = await asyncio.gather(first, *tasks)
        assert stage.rows == [1, 15, 16]
        for ran, x in zip(found, [features(1), *batches], strict=True):
            same(ran, entrance.bundle, x)
        assert found[1].queue_s > 0 and found[1].compute_s > 0

    running(test)


def test_cancelled_and_late_requests_do_not_run():
    entrance = an_entrance()
    stage = entrance.bundle.stages[0]

    async def test(runner):
        stage.opened.clear()
        first = asyncio.create_task(
            runner.run(entrance, (features(1),), later())
        )
        await until(lambda: stage.rows)
        cancelled = asyncio.create_task(
            runner.run(entrance, (features(3),), later())
        )
        late = asyncio.create_task(
            runner.run(entrance, (features(5),), later(0.05))
        )
        await until(lambda: runner.rows == 8)
        cancelled.cancel()
        await until(lambda: runner.rows == 5)
        await asyncio.sleep(0.06)
        stage.opened.set()
        with pytest.raises(DeadlinePassed):
            await late
        await first
        with pytest.raises(DeadlinePassed):
            await runner.run(entrance, (features(1),), later(-1))
        assert stage.rows == [1]

    running(test)


def test_a_full_queue_refuses_at_once():
    entrance = an_entrance(max_rows=16)
    stage = entrance.bundle.stages[0]

    async def test(runner):
        stage.opened.clear()
        tasks = [
            asyncio.create_task(runner.run(entrance, (features(1),), later()))
        ]
        await until(lambda: stage.rows)
        tasks.append(
            asyncio.create_task(runner.run(entrance, (features(16),), later()))
        )
        await until(lambda: runner.rows == 16)
        with pytest.raises(Overloaded):
            await runner.run(entrance, (features(1),), later())
        stage.opened.set()
        await asyncio.gather(*tasks)
        await runner.run(entrance, (features(1),), later())

    running(test)


def test_who_waits_longest_is_first_whatever_the_entrance():
    entrances = [an_entrance() for _ in range(3)]
    order = []

    async def ask(runner, position, entrance):
        await runner.run(entrance, (features(1),), later())
        order.append(position)

    async def test(runner):
        stage = entrances[0].bundle.stages[0]
        stage.opened.clear()
        tasks = [asyncio.create_task(ask(runner, 0, entrances[0]))]
        await until(lambda: stage.rows)
        for position in (2, 1, 0):
            tasks.append(
                asyncio.create_task(ask(runner, position, entrances[position]))
            )
            await until(lambda: runner.rows == len(tasks) - 1)
        stage.opened.set()
        await asyncio.gather(*tasks)
        assert order == [0, 2, 1, 0]

    running(test)


def test_several_workers_run_at_the_same_time():
    entrances = [an_entrance() for _ in range(2)]

    async def test(runner):
        for entrance in entrances:
            entrance.bundle.stages[0].opened.clear()
        tasks = [
            asyncio.create_task(runner.run(entrance, (features(1),), later()))
            for entrance in entrances
        ]
        await until(lambda: all(x.bundle.stages[0].rows for x in entrances))
        for entrance in entrances:
            entrance.bundle.stages[0].opened.set()
        await asyncio.gather(*tasks)

    running(test, num_workers=2)


def test_a_delay_gathers_requests():
    entrance = an_entrance(max_batch=8, max_delay_s=30.0)
    noted = []

    async def test(runner):
        await asyncio.gather(
            *(runner.run(entrance, (features(4),), later()) for _ in range(2))
        )
        assert entrance.bundle.stages[0].rows == [8]
        assert [rows for rows, _ in noted] == [8]

    running(test, observe=lambda *batch: noted.append(batch))
    hasty = an_entrance(max_delay_s=0.02)

    async def alone(runner):
        await runner.run(hasty, (features(4),), later())

    running(alone)


def test_an_error_is_for_its_batch_alone():
    entrance = an_entrance()
    stage = entrance.bundle.stages[0]

    async def test(runner):
        stage.error = RuntimeError("/secret/path")
        with pytest.raises(RuntimeError):
            await runner.run(entrance, (features(2),), later())
        stage.error = None
        await runner.run(entrance, (features(2),), later())

    running(test)


def test_split():
    bundle = later_stages(1)
    x = features(12)
    whole = bundle.route(x, (np.inf, 0.4))
    parts = split(whole, [5, 0, 7])
    assert [len(part.exit_index) for part in parts] == [5, 0, 7]
    staying = [
        part.staying + at for part, at in zip(parts, (0, 5, 5), strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate(staying), whole.staying)
    assert parts[1].feature is None


def test_who_is_alone_and_small_runs_in_the_event_loop():
    entrance, x = an_entrance(), features(3)
    stage, queue = entrance.bundle.stages[0], entrance.queue

    async def test(runner):
        async def runs_here():
            ran = await runner.run(entrance, (x,), later())
            thread = stage.threads[-1]
            same(ran, entrance.bundle, x)
            return thread == threading.get_ident()

        # How long it takes is not known before it has run.
        assert not await runs_here()
        ends_at = later(20)
        queue.ran(rows=1, seconds=1e-6)
        # The thread may still be on its way to sleep.
        while not await runs_here():
            assert time.monotonic() < ends_at
            queue.ran(rows=1, seconds=1e-6)
        queue.ran(rows=1, seconds=0.002)
        assert not await runs_here()
        # Those that come together run together, elsewhere.
        queue.ran(rows=1, seconds=1e-6)
        del stage.rows[:], stage.threads[:]
        await asyncio.gather(
            *(runner.run(entrance, (x,), later()) for _ in range(3))
        )
        assert sum(stage.rows) == 9
        assert threading.get_ident() not in stage.threads
        queue.ran(rows=1, seconds=1e-6)
        with pytest.raises(DeadlinePassed):
            await runner.run(entrance, (x,), later(-1))
        assert len(queue) == 0

    running(test)
