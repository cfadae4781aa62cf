"""`cloud-worker capacity`: how many edges a worker can have."""

import dataclasses
import pathlib
from typing import Annotated

import typer

from keras_earlyexit.cli import options
from keras_earlyexit.cli.shared import (
    CommandError,
    ExitCode,
    check_package,
    mendable,
    print_json,
    print_table,
)


def capacity(
    service: Annotated[
        pathlib.Path,
        typer.Option(
            help="What a call takes: the file that `edge-worker load "
            "--calibrate` wrote."
        ),
    ],
    edges: Annotated[
        str, typer.Option(help="Numbers of edges, such as 10,100,1000.")
    ] = "10,100,1000",
    rate: options.Rate = 1.0,
    burst_factor: options.BurstFactor = 1.0,
    burst_s: options.BurstSeconds = 1.0,
    deadline: Annotated[
        float, typer.Option(help="Seconds that an edge waits.")
    ] = 2.0,
    cores: Annotated[int, typer.Option(min=1, help="Cores of the worker.")] = 1,
    workers: Annotated[
        int, typer.Option(min=1, help="As of `serve`: batches at a time.")
    ] = 2,
    max_batch: Annotated[int, typer.Option(min=1, help="As of `serve`.")] = 64,
    max_queue: Annotated[
        int, typer.Option(min=1, help="As of `serve`.")
    ] = 1024,
    max_delay_ms: Annotated[
        float, typer.Option(min=0, help="As of `serve`.")
    ] = 0.0,
    bits_per_second: Annotated[
        float, typer.Option(help="What the link of an edge carries.")
    ] = 20e6,
    round_trip_ms: Annotated[
        float | None,
        typer.Option(
            min=0, help="Round trip of an edge (default: that of --service)."
        ),
    ] = None,
    shared_bits_per_second: Annotated[
        float, typer.Option(help="What the cloud's own connection carries.")
    ] = 1e9,
    core_hour_price: Annotated[
        float, typer.Option(min=0, help="Of a core, in any currency.")
    ] = 0.04,
    calls: Annotated[
        int, typer.Option(min=100, help="About so many in a simulation.")
    ] = 10_000,
    seed: options.Seed = 0,
    plot: Annotated[
        pathlib.Path | None, typer.Option(help="Picture to write.")
    ] = None,
    as_json: options.Json = False,
):
    """Simulate a worker with more and more edges.

    What a call takes was measured; the queue is the worker's own. Says how many
    are answered in time, what is the bottleneck, what a million answers cost
    and how many edges there may be before one call in a thousand is late.
    """
    check_package("simpy", "capacity")
    from cloud_worker.capacity import planning
    from cloud_worker.capacity.simulation import Setting
    from keras_earlyexit.capacity.service import Service
    from keras_earlyexit.capacity.traffic import Traffic
    from keras_earlyexit.cost.measured import Link

    if plot is not None:
        check_package("matplotlib", "--plot")
    numbers = _numbers(edges)
    with mendable():
        if not service.is_file():
            raise FileNotFoundError(
                "Expected --service to be a file that `edge-worker load "
                f"--calibrate` has written. Received: '{service}', which is "
                "no file. Correct the path, or measure a worker first."
            )
        found = Service.load(service)
    with mendable(ExitCode.USAGE):
        trip_s = found.round_trip_seconds
        if round_trip_ms is not None:
            trip_s = round_trip_ms / 1000
        setting = Setting(
            found,
            deadline,
            cores,
            max_batch,
            max_queue,
            max_delay_ms / 1000,
            workers,
            Link(bits_per_second, trip_s),
            shared_bits_per_second,
        )
        one = Traffic(1, rate, 1.0, burst_factor, burst_s, seed)
        plays = [
            planning.with_edges(setting, one, number, calls)
            for number in numbers
        ]
    points = [planning.point(setting, play, core_hour_price) for play in plays]
    most = planning.most_edges(setting, plays[0])
    best = most and planning.point(setting, most, core_hour_price)
    if plot is not None:
        from cloud_worker.capacity.pictures import draw

        draw(points, _title(found, setting, rate), plot)
    if as_json:
        print_json(
            {
                "points": [dataclasses.asdict(x) for x in points],
                "most": best and dataclasses.asdict(best),
            }
        )
    else:
        _print(points, best, _title(found, setting, rate))
    return ExitCode.OK


def _numbers(text):
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = [0]
    if numbers[0] < 1:
        raise CommandError(
            "Expected --edges as whole numbers above 0, such as 10,100. "
            f"Received: {text!r}.",
            ExitCode.USAGE,
        )
    return numbers


def _title(service, setting, rate):
    plural = "" if setting.cores == 1 else "s"
    return (
        f"'{service.name}', {rate:g} calls a second and edge, "
        f"{setting.cores} core{plural}"
    )


def _print(points, best, title):
    rows = [
        (
            f"{x.edges:,}",
            f"{x.answered_per_second:,.0f}",
            f"{x.in_time:.1%}",
            f"{1e3 * x.p50_s:,.0f}",
            f"{1e3 * x.p99_s:,.0f}",
            f"{x.cores_used:.2f}",
            x.bottleneck,
            f"{x.cost_per_million:,.3f}",
        )
        for x in [*points, *([best] if best else [])]
    ]
    print_table(
        title,
        (
            ">edges",
            ">answers/s",
            ">in time",
            ">p50 ms",
            ">p99 ms",
            ">cores",
            "busiest",
            ">cost/1M",
        ),
        rows,
    )
    if best is None:
        print("Not one edge is answered in time: allow a longer --deadline.")
    else:
        print(
            f"The last row has the most edges of which 99.9 % of the calls are "
            f"answered in time: {best.edges:,}."
        )
