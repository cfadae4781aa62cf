"""`edge-worker load`: how a cloud worker does when many edges call."""

import asyncio
import contextlib
import json
import pathlib
from typing import Annotated

import numpy as np
import typer

from edge_worker.cli.shared import ExitCode
from keras_earlyexit.cli import options
from keras_earlyexit.cli.shared import CommandError, print_json, print_table


def load(
    settings,
    edges: Annotated[
        int, typer.Option(min=1, max=100_000, help="How many are played.")
    ] = 100,
    rate: options.Rate = 1.0,
    seconds: Annotated[
        float, typer.Option(min=0.5, max=86_400, help="For how long.")
    ] = 30.0,
    rows: Annotated[int, typer.Option(min=1, help="Samples in a call.")] = 1,
    burst_factor: options.BurstFactor = 1.0,
    burst_s: options.BurstSeconds = 1.0,
    data: options.OptionalData = None,
    split: options.Split = None,
    data_dir: options.DataDir = None,
    connections: Annotated[
        int, typer.Option(min=1, max=1024, help="That the edges share.")
    ] = 8,
    pid: Annotated[
        int | None,
        typer.Option(
            help="The worker's process on this machine, to watch its memory "
            "and processor time."
        ),
    ] = None,
    calibrate: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="Measure what the worker takes for a call, for `cloud-worker "
            "capacity`, and write it there; plays no traffic. Needs --pid."
        ),
    ] = None,
    max_batch: Annotated[
        int, typer.Option(min=1, help="The worker's, for --calibrate.")
    ] = 64,
    seed: options.Seed = 0,
    output: options.OptionalOutput = None,
    as_json: options.Json = False,
):
    """Play many edges against a cloud worker, and count what they get.

    Each edge keeps a stream of its own and calls at random times, as --seed
    says, with features that were recorded from --data, or random ones. A call
    that is turned away or not answered within --deadline counts as that: a
    real edge gives its own early answer then.
    """
    from edge_worker.load.watching import Process
    from keras_earlyexit.capacity.traffic import Traffic

    if calibrate is not None and pid is None:
        raise CommandError(
            "Expected --pid with --calibrate, to see the worker's processor "
            "time. Received: none. It has to run on this machine.",
            ExitCode.USAGE,
        )
    traffic = Traffic(edges, rate, seconds, burst_factor, burst_s, seed)
    bundle = settings.load()
    settings.config.check_bundle(bundle.manifest)
    if settings.thresholds is not None:
        bundle.thresholds = settings.thresholds
    x = None if data is None else _inputs(bundle, data, split, data_dir)
    process = None if pid is None else Process(pid)
    if calibrate is not None:
        return _calibrate(
            settings, bundle, x, process, rows, max_batch, seconds, calibrate
        )
    facts = asyncio.run(
        _play(settings, bundle, x, traffic, rows, connections, process)
    )
    if output is not None:
        output.write_text(json.dumps(facts, indent=2) + "\n")
    if as_json:
        print_json(facts)
    else:
        _print(facts)
    return ExitCode.OK


def _inputs(bundle, data, split, data_dir):
    from keras_earlyexit import sources

    x, _, _, _ = sources.load(
        data,
        split,
        default_split="test",
        input_shape=bundle.manifest.stages[0].inputs[0].shape[1:],
        data_dir=data_dir,
    )
    return np.asarray(x[:2048])


def _calibrate(settings, bundle, x, process, rows, max_batch, seconds, path):
    from edge_worker.load.calibrating import calibrate

    service = asyncio.run(
        calibrate(
            settings.config.target,
            settings.config.security,
            bundle,
            x,
            process,
            rows=rows,
            codec=settings.config.codec,
            max_batch=max_batch,
            seconds=seconds,
        )
    )
    service.save(path)
    print_table(
        f"What a call of {rows} takes, of '{service.name}'",
        ("", ">ms"),
        [
            *(
                (f"stages, a batch of {size}", f"{1e3 * found:.3f}")
                for size, found in zip(
                    service.batch_sizes, service.stage_seconds, strict=True
                )
            ),
            ("a call outside the stages", f"{1e3 * service.call_seconds:.3f}"),
            ("round trip", f"{1e3 * service.round_trip_seconds:.3f}"),
        ],
    )
    return ExitCode.OK


async def _play(settings, bundle, x, traffic, rows, connections, process):
    from edge_worker.load.players import Players
    from edge_worker.load.recording import record
    from edge_worker.load.watching import Watch

    config = settings.config
    recording = record(bundle, x, rows, config.codec, seed=traffic.seed)
    watch = None if process is None else Watch(process)
    async with Players(
        config.target, config.security, recording, config.deadline, connections
    ) as players:
        await players.open(traffic.edges)
        async with contextlib.nullcontext() if watch is None else watch:
            tally = await players.play(traffic)
    return {
        "edges": traffic.edges,
        "rate": traffic.calls_per_second,
        "seconds": traffic.seconds,
        "burst_factor": traffic.burst_factor,
        "rows": rows,
        "staying": recording.staying,
        "deadline_s": config.deadline,
        "seed": traffic.seed,
        **tally.facts(traffic.seconds),
        **({} if watch is None else watch.facts()),
    }


def _print(facts):
    offered = max(facts["offered"], 1)
    rows = [
        (name.replace("_", " "), f"{facts[name]:,}", f"{n / offered:.2%}")
        for name in (
            *("answered", "degraded", "past_deadline", "rejected", "failed"),
        )
        for n in [facts[name]]
    ]
    rows.append(
        ("answered a second", f"{facts['answered_per_second']:,.1f}", "")
    )
    rows += [
        (f"{name} of answers", f"{facts[f'{name}_ms']:,.1f} ms", "")
        for name in ("p50", "p95", "p99")
    ]
    rows.append(
        ("calls began late by", f"{facts['player_lag_p99_ms']:.1f} ms", "p99")
    )
    if "worker_cores" in facts:
        rows += [
            ("worker's cores", f"{facts['worker_cores']:.2f}", ""),
            (
                "worker's memory",
                f"{facts['memory_mb']:,.1f} MB",
                f"{facts['memory_growth_mb']:+.1f} MB",
            ),
        ]
    print_table(
        f"{facts['offered']:,} calls of {facts['edges']:,} edges in "
        f"{facts['seconds']:g} s",
        ("", ">", ">share"),
        rows,
    )
    if facts["first_error"]:
        print(f"First failure: {facts['first_error']}")
