"""The split runtime on loopback: what crossing costs, and what it changes.

A ResNet-20 with two exits, cut behind the first, each half a LiteRT bundle; the
cloud worker is a process of its own. With `--model` a trained model answers
real images; without, random ones.

    python benchmarks/split.py
    python benchmarks/split.py --model demo/model.keras --data mnist

Bundles that are in `--folder` are used, so that a machine without TensorFlow
can measure those of another.
"""

import argparse
import concurrent.futures
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from _shared import clock, write_report
from _workers import ROOT, cloud_worker

import keras_earlyexit as ee
from keras_earlyexit.memory import keep_freed
from protos.polling import poll_directly

SIZES = (1, 4, 16, 64)
CODECS = ("float32", "bfloat16", "uint8", "uint8_channel", "uint8+zstd")
EDGES = 4
#: Calls of an edge at the same time.
IN_FLIGHT = (1, 8)
TURNS = 5


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a trained model.keras")
    parser.add_argument("--data", default="mnist", help="what it answers")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument(
        "--nice",
        type=int,
        default=0,
        help="of edges that ask the worker for its throughput",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=2,
        help="of the cloud worker: batches at the same time",
    )
    parser.add_argument("--folder", type=pathlib.Path, help="of the bundles")
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--edge", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--load", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    # As the commands do, also for what runs in one process.
    keep_freed()
    poll_directly()
    if options.edge:
        print(json.dumps(edge_process(*options.edge)))
        return
    if options.load:
        load_process(*options.load)
        return
    with tempfile.TemporaryDirectory() as folder:
        folder = options.folder or pathlib.Path(folder)
        x, y = samples(options)
        if not (folder / "cut").exists():
            write(folder, options, x)
        cut = folder / "cut"
        flags = "--workers", options.workers
        with cloud_worker(cut / "segment_1", *flags) as cloud:
            address = cloud.address
            rows = [
                *agreement(folder, address, x, y),
                *added_time(cut, address, x),
                *bytes_up(cut, address, x),
                *throughput(cut, cloud, options),
                memory(cut, address),
            ]
    write_report(
        options.output,
        rows,
        packages=("grpcio", "ai-edge-litert"),
        workers=options.workers,
        model=options.model or "random",
    )


def edge_worker(bundle, address, **settings):
    """An `EdgeWorker`, imported once gRPC has been told how to poll."""
    from edge_worker import EdgeWorker

    return EdgeWorker(bundle, address, insecure=True, **settings)


def show(**row):
    print(
        ", ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
            for k, v in row.items()
        ),
        flush=True,
    )
    return row


def samples(options):
    """What is asked: inputs, and labels or `None`."""
    if options.model is None:
        x = np.random.default_rng(0).normal(size=(options.samples, 32, 32, 3))
        return x.astype("float32"), None
    x, y = ee.datasets.load(options.data, "test")
    x, y = x[: options.samples], y[: options.samples]
    return ee.datasets.normalize(options.data, x), y


def write(folder, options, x):
    """Writes the bundles, whole and cut."""
    import keras

    keras.utils.set_random_seed(0)
    if options.model:
        model = keras.models.load_model(options.model)
    else:
        plain = ee.backbones.resnet_cifar(20, (32, 32, 3), 10)
        model = ee.add_exits(plain, 2, policy="max_probability")
        scores = ee.calibration.observe(model, x, verbose=0).scores
        model.policy.threshold = np.median(scores, axis=0).tolist()
    ee.export(model, folder / "whole")
    ee.export(model, folder / "cut", cut="exit_0")


def agreement(folder, address, x, y):
    """Answers over the split against the bundle that was not cut."""
    whole = ee.load_bundle(folder / "whole").predict_exits(x)
    for codec in CODECS:
        with edge_worker(
            folder / "cut" / "segment_0", address, codec=codec
        ) as worker:
            found = worker.predict(x)
        classes = found.predictions.argmax(-1)
        row = {
            "what": "answers",
            "codec": codec,
            "same_exit": float((found.exit_index == whole.exit_index).mean()),
            "same_class": float(
                (classes == whole.predictions.argmax(-1)).mean()
            ),
            "largest_difference": float(
                np.abs(found.predictions - whole.predictions).max()
            ),
            **found.counts,
        }
        if y is not None:
            row["accuracy"] = float((classes == y).mean())
        yield show(**row)


def added_time(cut, address, x, rounds=40, in_a_row=20):
    """One sample that goes on: over the same stages in this process.

    Everything in turn: `in_a_row` calls each, as of an edge that has one
    sample after another, and one call each, which finds the caches full of
    something else.
    """
    # It imports gRPC.
    from _echo import echo

    edge = ee.load_bundle(cut / "segment_0")
    cloud = ee.load_bundle(cut / "segment_1")
    one, nobody = x[:1], np.full(len(edge.exit_names) - 1, np.inf)
    with edge_worker(cut / "segment_0", address, thresholds=nobody) as worker:
        found = worker.predict(one)
        with echo(found.bytes_up, found.bytes_down) as (over_stream, call):
            parts = {
                "stages": lambda: cloud.route(edge.route(one, nobody).feature),
                "split": lambda: worker.predict(one),
                "echo": over_stream,
                "echo_call": call,
            }
            for calls in (in_a_row, 1):
                seconds = {name: [] for name in parts}
                for _ in range(rounds * in_a_row // calls):
                    for name, function in parts.items():
                        seconds[name] += (clock(function) for _ in range(calls))
                pairs = zip(seconds["split"], seconds["stages"], strict=True)
                yield show(
                    what="one forwarded sample",
                    in_a_row=calls,
                    **{
                        f"{name}_ms": 1000 * statistics.median(times)
                        for name, times in seconds.items()
                    },
                    added_ms=1000 * statistics.median(a - b for a, b in pairs),
                    p99_split_ms=1000
                    * float(np.quantile(seconds["split"], 0.99)),
                )


def bytes_up(cut, address, x):
    """Bytes of requests over those of the features in their codec."""
    edge = ee.load_bundle(cut / "segment_0")
    nobody = np.full(len(edge.exit_names) - 1, np.inf)
    everybody = -nobody
    elements = int(np.prod(edge.route(x[:1], nobody).feature.shape[1:]))
    for codec, size in (("float32", 4), ("bfloat16", 2), ("uint8", 1)):
        for rows in (1, 64):
            with edge_worker(
                cut / "segment_0", address, thresholds=nobody, codec=codec
            ) as worker:
                found = worker.predict(x[:rows])
            payload = rows * elements * size
            yield show(
                what="bytes up",
                codec=codec,
                rows=rows,
                payload=payload,
                bytes_up=found.bytes_up,
                overhead=found.bytes_up / payload - 1,
            )
    with edge_worker(
        cut / "segment_0", address, thresholds=everybody
    ) as worker:
        found = worker.predict(x[:64])
    yield show(what="bytes up", leave="all", bytes_up=found.bytes_up)


def throughput(cut, cloud, options):
    """Samples per second of several edges, over stages in one process.

    That process runs them in one thread, and in as many as the worker has. All
    in turn, since machines are not always equally fast; ratios are medians over
    the turns. Edges, which in use are machines of their own, take what the
    worker leaves of the cores where `nice` is 19.
    """
    seconds, nice = options.seconds / TURNS, options.nice
    bundle = ee.load_bundle(cut / "segment_1", num_calls=options.workers)
    spec = _feature_spec(ee.load_bundle(cut / "segment_0"))
    rng = np.random.default_rng(0)
    for size in SIZES:
        feature = rng.normal(size=(size, *spec.shape[1:])).astype("float32")

        def here(feature=feature):
            return bundle.route(feature)

        for in_flight in IN_FLIGHT:
            with edges(cut, cloud, size, in_flight, seconds, nice) as ask:
                turns = np.array(
                    [
                        (
                            *ask(),
                            *alone(here, size, seconds),
                            *alone(here, size, seconds, options.workers),
                        )
                        for _ in range(TURNS)
                    ]
                )
            rate, worker_s, alone_rate, stages_s, threads_rate, _ = turns.T
            yield show(
                what="throughput",
                edges=EDGES,
                batch=size,
                in_flight=in_flight,
                nice=nice,
                served_per_second=float(np.median(rate)),
                one_process_per_second=float(np.median(alone_rate)),
                ratio=float(np.median(rate / alone_rate)),
                workers=options.workers,
                as_many_threads_per_second=float(np.median(threads_rate)),
                ratio_as_many=float(np.median(rate / threads_rate)),
                worker_processor_ms=1000 * float(np.median(worker_s)),
                stages_processor_ms=1000 * float(np.median(stages_s)),
                processor_ratio=float(np.median(stages_s / worker_s)),
            )


def alone(function, rows, seconds, threads=1):
    """Samples per second here, and processor seconds of a sample."""

    def ask(start):
        count = 0
        while time.perf_counter() - start < seconds:
            function()
            count += rows
        return count

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        used, start = time.process_time(), time.perf_counter()
        count = sum(pool.map(ask, [start] * threads))
        wall = time.perf_counter() - start
    return count / wall, (time.process_time() - used) / count


@contextlib.contextmanager
def edges(cut, cloud, size, in_flight, seconds, nice):
    """Several edges, each a process.

    Yields:
        A function that lets them ask for so many seconds, and returns samples
        per second, and processor seconds of the worker for a sample.
    """
    flags = cut / "segment_0", cloud.address, size, in_flight, seconds, nice
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--load", *map(str, flags)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(EDGES)
    ]

    def ask():
        used = cloud.processor_seconds()
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        found = [json.loads(x.stdout.readline()) for x in processes]
        used = cloud.processor_seconds() - used
        rate = sum(x["count"] / x["seconds"] for x in found)
        return rate, used / sum(x["count"] for x in found)

    try:
        for process in processes:
            process.stdout.readline()
        yield ask
    finally:
        for process in processes:
            process.communicate()


def load_process(bundle, address, size, in_flight, seconds, nice):
    """An edge that has so many calls in flight, whenever it is told to."""
    from protos.calling.link import Link
    from protos.security import ClientSecurity

    edge = ee.load_bundle(bundle)
    shape = (int(size), *_feature_spec(edge).shape[1:])
    feature = np.random.default_rng(0).normal(size=shape).astype("float32")
    os.nice(int(nice))
    link = Link.of(
        edge.manifest,
        address,
        ClientSecurity(insecure=True),
        edge_id="edge",
        deadline_s=60.0,
    )

    def ask(seconds):
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            link.infer({"feature": feature})
            count += len(feature)
        return count

    with link, concurrent.futures.ThreadPoolExecutor(int(in_flight)) as pool:
        ask(0.2)
        print("ready", flush=True)
        for _ in sys.stdin:
            start = time.perf_counter()
            count = sum(pool.map(ask, [float(seconds)] * int(in_flight)))
            found = {"count": count, "seconds": time.perf_counter() - start}
            print(json.dumps(found), flush=True)


def _feature_spec(bundle):
    outputs = bundle.manifest.stages[-1].outputs
    return next(spec for spec in outputs if spec.name == "feature")


def memory(cut, address):
    """Resident memory of a process that is an edge worker and no more."""
    output = subprocess.run(
        [sys.executable, __file__, "--edge", str(cut / "segment_0"), address],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return show(what="edge process", **json.loads(output.splitlines()[-1]))


def edge_process(bundle, address):
    with edge_worker(bundle, address) as worker:
        (spec,) = worker.bundle.manifest.stages[0].inputs
        x = np.random.default_rng(0).normal(size=(64, *spec.shape[1:]))
        for _ in range(20):
            worker.predict(x.astype("float32"))
        pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
        return {
            "resident_mb": int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6,
            "tensorflow": "tensorflow" in sys.modules,
            "keras": "keras" in sys.modules,
        }


if __name__ == "__main__":
    main()
