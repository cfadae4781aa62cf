"""Measures what a cloud worker takes for a call, from outside."""

import dataclasses

import numpy as np

from edge_worker.load.players import Players
from edge_worker.load.recording import record
from keras_earlyexit.capacity.service import Service

_DEADLINE_S = 60.0
# Calls that are made before it counts.
_WARM_UP = 5


async def calibrate(
    target, security, bundle, x, process, *, rows, codec, max_batch, seconds
):
    """Measures a worker that nobody else calls.

    The stages: lone calls of 1, 2, 4, ..., `max_batch` samples, whose answers
    say how long they ran. All else: callers who never call together, as many as
    make full batches; the processor time of the worker over the number of
    calls, less that of its stages.

    Args:
        target: `"host:port"` of the worker.
        security: A `ClientSecurity`.
        bundle: The `Bundle` of the first segment.
        x: Its inputs, or `None` for random ones.
        process: The `Process` of the worker.
        rows: Samples of a call.
        codec: Form in which features cross.
        max_batch: The worker's own.
        seconds: Seconds for each of the two parts.

    Returns:
        A `Service`.

    Raises:
        SplitError: If it does not answer.
    """

    def players(size):
        recording = record(bundle, x, size, codec)
        return Players(target, security, recording, _DEADLINE_S), recording

    sizes = [2**k for k in range(max_batch.bit_length()) if 2**k < max_batch]
    sizes.append(max_batch)
    stages = []
    for size in sizes:
        lone, _ = players(size)
        async with lone:
            stages.append(await _alone(lone, seconds / len(sizes)))
    busy, recording = players(rows)
    async with busy:
        _, round_trip_s, bytes_down = await _alone(busy, 0.5)
        callers = max(2, 2 * max_batch // rows)
        found = await busy.keep_busy(callers, seconds / 2)
        # As many again wait for an answer as wait for the time to call.
        pause_s = callers * seconds / 2 / max(found.counts["answered"], 1)
        used = process.processor_seconds()
        tally = await busy.keep_busy(2 * callers, seconds, pause_s)
        used = process.processor_seconds() - used
    service = Service(
        bundle.manifest.model_name,
        sizes,
        [stage_s for stage_s, _, _ in stages],
        0.0,
        rows=rows,
        round_trip_seconds=round_trip_s,
        bytes_up=len(recording.contents[0]),
        bytes_down=bytes_down,
    )
    in_stages = rows * service.seconds(max_batch) / max_batch
    outside = used / max(tally.counts["answered"], 1) - in_stages
    return dataclasses.replace(service, call_seconds=max(0.0, outside))


async def _alone(players, seconds):
    """Mean stage seconds, median rest of the round trip, bytes of answers."""
    for _ in range(_WARM_UP):
        await players.ask(0)
    stage_s, rest_s, left_s = [], [], seconds
    while left_s > 0 or len(stage_s) < _WARM_UP:
        reply, call_s = await players.ask(0)
        left_s -= call_s
        stage_s.append(reply.compute_us / 1e6)
        rest_s.append(call_s - stage_s[-1] - reply.queue_us / 1e6)
    return np.mean(stage_s), max(0.0, np.median(rest_s)), reply.ByteSize()
