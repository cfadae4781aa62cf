"""Many edges against one cloud worker: measured, simulated, and drawn.

A ResNet-20 for 32x32 images, cut behind its first exit, its later half a LiteRT
bundle on a cloud worker that has one core for itself; edges are played on
another one, with recorded features. What a call takes is measured before and
after; everything else is played and simulated with the very same calls.

    python benchmarks/scaling.py --output scaling.json
    python benchmarks/scaling.py --draw scaling.json --pictures docs/images
"""

import argparse
import asyncio
import dataclasses
import json
import os
import pathlib
import tempfile

import numpy as np
from _shared import write_report
from _workers import cloud_worker

import keras_earlyexit as ee
from cloud_worker.capacity import planning
from cloud_worker.capacity.simulation import Setting, simulate
from edge_worker.load.calibrating import calibrate
from edge_worker.load.players import Players
from edge_worker.load.recording import record
from edge_worker.load.watching import Process, Watch
from keras_earlyexit.capacity.service import Service
from keras_earlyexit.capacity.traffic import Traffic
from protos.security import ClientSecurity

CODEC, DEADLINE_S, MAX_QUEUE = "uint8", 2.0, 256
SECURITY = ClientSecurity(insecure=True)
#: Edges, calls of each in a second, and how bursty they are.
PLAYED = (
    (50, 1.0, 1),
    (100, 1.0, 1),
    (200, 1.0, 1),
    (300, 1.0, 1),
    (500, 1.0, 1),
    (500, 0.5, 5),
    (1000, 0.5, 1),
    (1000, 1.0, 1),
    (500, 2.0, 1),
)
#: The long run: edges, calls of each in a second.
LONG = (500, 0.5)
PRICE = 0.04
ONE = Traffic(1, 1.0, 1.0)
CORES = (1, 2, 3, 4, 6, 8)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="each play")
    parser.add_argument("--long", type=float, default=60.0, help="the long one")
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--draw", type=pathlib.Path, help="what to draw from")
    parser.add_argument("--pictures", type=pathlib.Path, help="where to")
    options = parser.parse_args()
    if options.draw is None:
        service, rows = measure(options)
        write_report(
            options.output,
            rows,
            packages=("ai-edge-litert", "grpcio", "simpy"),
            service=dataclasses.asdict(service),
        )
    else:
        report = json.loads(options.draw.read_text())
        service, rows = Service(**report["service"]), report["rows"]
    if options.pictures is not None:
        draw(service, rows, options.pictures)


def measure(options):
    """Plays everything; returns what a call takes, and a row for each play."""
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        edge, cloud = write(pathlib.Path(folder))
        flags = (
            *("--num-threads", 1, "--workers", 1),
            *("--max-queue", MAX_QUEUE),
        )
        with cloud_worker(cloud, *flags) as worker:
            pin(worker.pid, cores[0])
            pin(0, cores[-1])
            process = Process(worker.pid)
            found = asyncio.run(
                play_all(worker.address, edge, process, options)
            )
    return found


async def play_all(address, bundle, process, options):
    async def calibrated():
        return await calibrate(
            address,
            SECURITY,
            bundle,
            None,
            process,
            rows=1,
            codec=CODEC,
            max_batch=64,
            seconds=2.0,
        )

    recording = record(bundle, codec=CODEC)
    plays = [Traffic(e, r, options.seconds, f) for e, r, f in PLAYED]
    plays.append(Traffic(*LONG, options.long, seed=1))
    # What the machine gives changes from minute to minute.
    services, rows = [await calibrated()], []
    for traffic in plays:
        row = await play(address, recording, traffic, process)
        services.append(await calibrated())
        around = mean(services[-2:])
        row["simulated"] = simulated(around, traffic)
        row["call_ms"] = 1e3 * around.call_seconds
        row["stages_64_ms"] = 1e3 * around.seconds(64)
        off = row["simulated"]["answered_per_second"]
        row["off"] = off / max(row["answered_per_second"], 1e-9) - 1
        rows.append(row)
        print(summary(row))
        print(f"  simulated: {summary(row['simulated'])}")
        print(f"  off by {row['off']:+.1%}", flush=True)
    print(f"memory of the last: {rows[-1]['memory_growth_mb']:+.1f} MB")
    return mean(services), rows


async def play(address, recording, traffic, process):
    """Plays traffic on connections of its own."""
    watch = Watch(process)
    async with Players(address, SECURITY, recording, DEADLINE_S) as players:
        await players.open(traffic.edges)
        async with watch:
            tally = await players.play(traffic)
    return {
        "edges": traffic.edges,
        "rate": traffic.calls_per_second,
        "seconds": traffic.seconds,
        "burst_factor": traffic.burst_factor,
        "seed": traffic.seed,
        **tally.facts(traffic.seconds),
        **watch.facts(),
    }


def simulated(service, traffic):
    """The same traffic, simulated."""
    found = simulate(setting_of(service), traffic)
    return {
        "edges": traffic.edges,
        "rate": traffic.calls_per_second,
        "offered": found.offered,
        "answered": found.answered,
        "past_deadline": found.past_deadline,
        "rejected": found.rejected,
        "answered_per_second": found.answered_per_second,
        "p50_ms": 1e3 * found.latency_s(0.5),
        "p99_ms": 1e3 * found.latency_s(0.99),
        "worker_cores": found.used["cores"],
    }


def setting_of(service, **options):
    """A worker like the one that is measured."""
    link = ee.cost.Link(1e12, service.round_trip_seconds)
    options = {"link": link, "workers": 1, **options}
    return Setting(service, DEADLINE_S, max_queue=MAX_QUEUE, **options)


def mean(services):
    """What several measurements of a service have on average."""
    fields = ("stage_seconds", "call_seconds", "round_trip_seconds")
    found = {
        name: np.mean([getattr(x, name) for x in services], axis=0)
        for name in fields
    }
    return dataclasses.replace(
        services[0],
        stage_seconds=found["stage_seconds"],
        call_seconds=float(found["call_seconds"]),
        round_trip_seconds=float(found["round_trip_seconds"]),
    )


def summary(row):
    return (
        f"{row['edges']} edges, {row['rate']:g}/s each: "
        f"{row['answered_per_second']:.1f} answers/s, "
        f"{row['past_deadline']} late, {row['rejected']} rejected, "
        f"p50 {row['p50_ms']:.1f} ms, p99 {row['p99_ms']:.1f} ms, "
        f"{row['worker_cores']:.2f} cores"
    )


def write(folder):
    """Writes the bundles; returns the first half and the path of the other."""
    import keras

    keras.utils.set_random_seed(0)
    plain = ee.backbones.resnet_cifar(20, (32, 32, 3), 10)
    model = ee.add_exits(plain, 1, policy="max_probability")
    ee.export(model, folder, cut="exit_0", overwrite=True)
    return ee.load_bundle(folder / "segment_0"), folder / "segment_1"


def pin(pid, core):
    """Gives all threads of a process one core, also those to come."""
    for thread in os.listdir(f"/proc/{pid or 'self'}/task"):
        os.sched_setaffinity(int(thread), {core})


def draw(service, rows, folder):
    """Two pictures: one core as it was measured, and larger machines."""
    from cloud_worker.capacity.pictures import draw as draw_points

    setting = setting_of(service)
    numbers = np.unique(np.geomspace(20, 1000, 12).astype(int)).tolist()
    points = [
        planning.point(
            setting, planning.with_edges(setting, ONE, number, 2000), PRICE
        )
        for number in numbers
    ]
    measured = [
        row for row in rows if row["rate"] == 1 and row["burst_factor"] == 1
    ]
    title = "One core, one call a second and edge"
    draw_points(points, title, folder / "scaling.png", measured)
    found = list(larger(service))
    draw_larger(found, folder / "scaling_cores.png")
    for row in found:
        print(", ".join(f"{name} {value}" for name, value in row.items()))


def larger(service):
    """The most edges of machines with more cores, and what limits them."""
    for cores in CORES:
        for name, processes, options in (
            ("one process", 1, {}),
            ("a process a core", cores, {}),
            ("the same, 100 Mbit/s", cores, {"shared": 100e6}),
        ):
            own = cores // processes
            shared = options.get("shared", 1e9) / processes
            setting = setting_of(
                service,
                cores=own,
                workers=max(1, own - 1),
                shared_bits_per_second=shared,
            )
            most = planning.most_edges(setting, ONE)
            best = planning.point(setting, most, PRICE)
            yield {
                "kind": name,
                "cores": cores,
                "edges": processes * best.edges,
                "edges_a_core": best.edges / own,
                "cost_per_million": best.cost_per_million,
                "bottleneck": best.bottleneck,
            }


def draw_larger(found, path):
    from keras_earlyexit.drawing import INK, SERIES, finish, make_figure

    figure, (most, cost) = make_figure(9.5, 3.4, columns=2, shares=False)
    for kind, color in zip(
        dict.fromkeys(row["kind"] for row in found), SERIES, strict=False
    ):
        rows = [row for row in found if row["kind"] == kind]
        cores = [row["cores"] for row in rows]
        for axes, field in ((most, "edges"), (cost, "cost_per_million")):
            values = [row[field] for row in rows]
            axes.plot(cores, values, "o-", color=color, lw=1.8, label=kind)
        before = None
        for row in rows:
            if row["bottleneck"] != before:
                most.annotate(
                    row["bottleneck"],
                    (row["cores"], row["edges"]),
                    xytext=(4, -11),
                    textcoords="offset points",
                    fontsize=7,
                    color=INK,
                )
            before = row["bottleneck"]
    most.set_ylabel("Most edges")
    cost.set_ylabel("Cost of a million answers")
    for axes in (most, cost):
        axes.set_xlabel("Cores")
        axes.set_ylim(bottom=0)
    most.legend(frameon=False, fontsize=8)
    finish(figure, path)


if __name__ == "__main__":
    main()
