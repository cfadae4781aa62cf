"""Replicas on Ray Serve: two against one, where a stage is a timed sleep.

A stage that sleeps takes no processor, so two cores do not limit what two
replicas do; what is measured is what Ray, its proxy and the front make of them.
One cluster has one replica and then two, in turns, under the same load.

    python benchmarks/replicas.py
"""

import argparse
import asyncio
import concurrent.futures
import contextlib
import pathlib
import statistics
import tempfile
import threading
import time

import keras
import numpy as np
from _shared import write_report

import keras_earlyexit as ee
from cloud_worker.config import Settings
from cloud_worker.engines import on_ray

WIDTH, CLASSES = 32, 10
CLIENTS = 16


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage-ms", type=float, default=1000.0)
    parser.add_argument("--max-batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=25.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=pathlib.Path)
    options = parser.parse_args()
    # Before anything imports Ray.
    on_ray.set_environment()
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(write(pathlib.Path(folder)), options)
    ratio = rows[1]["requests_per_s"] / rows[0]["requests_per_s"]
    print(f"two replicas against one: {ratio:.2f} times")
    write_report(
        options.output,
        [*rows, {"ratio": ratio}],
        ("keras", "tensorflow", "ray"),
        stage_ms=options.stage_ms,
        max_batch=options.max_batch,
        clients=CLIENTS,
    )


def write(folder):
    """Both halves of a small network."""
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((WIDTH,))
    for i in range(3):
        x = keras.layers.Dense(WIDTH, "relu", name=f"dense_{i}")(x)
    outputs = keras.layers.Dense(CLASSES, "softmax")(x)
    plain = keras.Model(inputs, outputs)
    model = ee.add_exits(plain, ["dense_0"], policy="max_probability")
    ee.export(model, folder / "cut", cut="exit_0")
    return folder / "cut"


def measured(cut, options):
    from ray import serve

    from cloud_worker.engines import ray_app
    from cloud_worker.engines.front import APPLICATION

    found = {1: [], 2: []}
    settings = Settings(
        bundle=[cut / "segment_1"],
        insecure=True,
        listen="127.0.0.1:0",
        engine="ray",
        replicas=2,
        max_batch=options.max_batch,
        log_level="warning",
    )
    replica = sleeping(options.stage_ms / 1000)
    with (
        on_ray.cluster(settings, replica) as target,
        front(settings, target) as address,
    ):
        for _ in range(options.rounds):
            for count in found:
                serve.run(
                    ray_app.application(
                        settings.model_copy(update={"replicas": count}),
                        replica,
                    ),
                    name=APPLICATION,
                    route_prefix=f"/{APPLICATION}",
                )
                found[count].append(load(cut, address, options.seconds))
                print(f"{count} replicas: {found[count][-1]:.1f} requests/s")
    return [
        {"replicas": count, "requests_per_s": statistics.median(rates)}
        for count, rates in found.items()
    ]


def sleeping(seconds):
    """A class of replicas whose batches each sleep in front of the stages."""
    from cloud_worker.engines.ray_app import Replica

    class Sleeping(Replica):
        async def __init__(self, settings):
            from cloud_worker import running

            run = running.run_batch

            def slow(bundle, batch):
                time.sleep(seconds)
                return run(bundle, batch)

            running.run_batch = slow
            await super().__init__(settings)

    return Sleeping


@contextlib.contextmanager
def front(settings, target):
    """The port that edges see, in a thread; gives its address."""
    from cloud_worker.endpoint import Endpoint
    from cloud_worker.engines.front import Front

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    async def start():
        endpoint = Endpoint(settings)
        found = Front(target, endpoint.metrics, 4 << 20, 60.0)
        await endpoint.start(found.add_to, 4 << 20)
        return endpoint, found

    endpoint, found = run(start())
    try:
        yield endpoint.address
    finally:
        run(endpoint.stop(1.0, found.in_flight))
        run(found.close())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def load(cut, address, seconds):
    """Requests that are answered in a second, by clients in a closed loop."""
    from protos.calling.link import Link
    from protos.security import ClientSecurity

    edge = ee.load_bundle(cut / "segment_0")
    rows = np.random.default_rng(0).normal(size=(1, WIDTH)).astype("float32")
    feature = {"feature": edge.stages[0]((rows,))["feature"]}
    link = Link.of(
        edge.manifest,
        address,
        ClientSecurity(insecure=True),
        edge_id="benchmark",
        deadline_s=60.0,
        max_in_flight=CLIENTS,
    )
    ends_at = threading.Event()

    def ask(number):
        count = 0
        while not ends_at.is_set():
            link.infer(feature, request_id=f"client-{number}")
            count += 1
        return count

    with link, concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        assert link.connect(60.0)
        started = time.perf_counter()
        futures = [pool.submit(ask, number) for number in range(CLIENTS)]
        time.sleep(seconds)
        ends_at.set()
        total = sum(future.result() for future in futures)
        return total / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
