"""Measures how long a model takes on this machine, stage by stage.

What is compared is run in turn, round after round, so that a machine that
slows down meanwhile slows all of it down alike. Keras is only needed for Keras
models: on a device without it, import this module to profile a bundle.
"""

import math
import platform
import sys
import time

import numpy as np

from keras_earlyexit.cost.measured import Machine, Timing, count
from keras_earlyexit.cost.profiles import DeviceProfile
from keras_earlyexit.profiling import bundle_runs, machine

# The first runs compile, and fill caches.
_WARM_UP = 3
# The counters of energy move about once a millisecond.
_ENERGY_SECONDS = 0.1
_ENERGY_ROUNDS = 3


def profile(
    model,
    batch_sizes=(1, 32, 256),
    *,
    repeats=20,
    x=None,
    training=False,
    clock=time.perf_counter,
    powercap=machine.POWERCAP,
):
    """Measures the stages of a model, the time to each exit, and energy.

    Everything is run `repeats` times when it is warm, and waited for. Weights
    do not change, nor does anything else of the model.

    Args:
        model: An `EarlyExitModel`, any other Keras model, which is a single
            stage, or a bundle: an object with `predict_exits`, and perhaps
            with `stages`, functions of a tuple of arrays, and `route`.
        batch_sizes: Batch sizes to measure, in samples.
        repeats: Runs of everything for each batch size.
        x: Samples to run on, repeated to fill a batch: an array, or a list or
            dict of them. `None`: zeros.
        training: Whether to measure training steps too, for `ee.plan_cut`:
            of the whole model, and of both segments of each cut. The name of
            a Keras optimizer, or `True` for `"adam"`. They are Keras' own, on
            a copy of the model.
        clock: A function that returns seconds; for tests.
        powercap: Folder of the machine's energy counters; for tests.

    Returns:
        A `DeviceProfile`. Its energy is `None` where counters cannot be read,
        its peak memory where the system does not tell.

    Raises:
        TypeError: If `model` is nothing that can be run.
        ValueError: If sizes or samples cannot be, or if samples are needed.

    Example:

    ```python
    profile = ee.cost.profile(model, batch_sizes=(1, 32))
    print(profile)
    print(profile.seconds("exit_0", 1), profile.exit_seconds("final", 1))
    ```
    """
    rounds = in_turn(
        model,
        batch_sizes,
        repeats=repeats,
        x=x,
        training=training,
        clock=clock,
        powercap=powercap,
    )
    while True:
        try:
            next(rounds)
        except StopIteration as end:
            return end.value


def in_turn(
    model,
    batch_sizes,
    *,
    repeats,
    x=None,
    training=False,
    clock=time.perf_counter,
    powercap=machine.POWERCAP,
):
    """Profiles a model in turn with something else.

    On a machine whose speed drifts, what is measured later cannot be compared.
    This is `profile` as a generator, which stops before each round.

    Args:
        model, batch_sizes, repeats, x, training, clock, powercap: As in
            `profile`.

    Yields:
        The batch size of the round that is next.

    Returns:
        The `DeviceProfile`.
    """
    sizes = _checked_sizes(batch_sizes)
    repeats = count("repeats", repeats)
    subject = _subject(model, training)
    meter = machine.EnergyMeter(powercap)
    found, peaks = [], []
    for size in sizes:
        runs = subject.runs(subject.batch(x, size))
        for _ in range(_WARM_UP):
            for run in runs:
                run.call()
        peaks.append(_peak_bytes(runs))
        seconds = np.empty((repeats, len(runs)))
        for row in seconds:
            yield size
            for i, run in enumerate(runs):
                start = clock()
                run.call()
                row[i] = clock() - start
        found.append((seconds, _energy(runs, seconds, meter)))
    timings = [_timing(run, found, i) for i, run in enumerate(runs)]
    by_kind = {
        kind: [
            timing
            for run, timing in zip(runs, timings, strict=True)
            if run.kind == kind
        ]
        for kind in ("stage", "exit", "plain", "training")
    }
    return DeviceProfile(
        name=subject.name,
        batch_sizes=sizes,
        stages=by_kind["stage"],
        exits=by_kind["exit"],
        plain=by_kind["plain"][0] if by_kind["plain"] else None,
        peak_bytes=None if None in peaks else peaks,
        machine=Machine(
            platform=f"{platform.system()} {platform.machine()}",
            processor=machine.processor(),
            cpu_count=machine.cpu_count(),
            device=subject.device,
            backend=subject.backend,
            versions=machine.versions(),
        ),
        training=by_kind["training"],
    )


def _checked_sizes(batch_sizes):
    if not isinstance(batch_sizes, (list, tuple, set, range, np.ndarray)):
        raise TypeError(
            "Expected `batch_sizes` to be a sequence of integers. Received: "
            f"batch_sizes={batch_sizes!r} (of type "
            f"{type(batch_sizes).__name__}). Pass for example (1, 32)."
        )
    sizes = sorted({count("batch_sizes", size) for size in batch_sizes})
    if not sizes:
        raise ValueError("Expected at least one batch size. Received: none.")
    return sizes


def _subject(model, training):
    """What is run of a model, by its kind."""
    optimizer = "adam" if training is True else training
    # Who has not imported Keras cannot have made a model with it.
    if "keras" in sys.modules:
        from keras import Model

        if isinstance(model, Model):
            from keras_earlyexit.profiling import timed_runs

            subject = timed_runs.of(model)
            if not training:
                return subject
            from keras_earlyexit.profiling import timed_training

            return timed_training.TrainingRuns(subject, model, optimizer)
    if training:
        raise ValueError(
            "Expected a Keras model to measure training steps of. Received: "
            f"training={training!r} for {type(model).__name__}. Leave it out, "
            "or pass the model that the bundle was made of."
        )
    if hasattr(model, "predict_exits"):
        return bundle_runs.BundleRuns(model)
    raise TypeError(
        "Expected an EarlyExitModel, a Keras model or a bundle. Received: "
        f"{model!r} (of type {type(model).__name__})."
    )


def _energy(runs, seconds, meter):
    """Joules of each run, or `None`."""
    if meter.read() is None:
        return None
    typical = np.median(seconds, axis=0)
    joules = [
        [
            _joules(run, math.ceil(_ENERGY_SECONDS / expected), meter)
            for run, expected in zip(runs, typical, strict=True)
        ]
        for _ in range(_ENERGY_ROUNDS)
    ]
    return np.median(joules, axis=0)


def _joules(run, times, meter):
    before = meter.read()
    for _ in range(times):
        run.call()
    used = meter.joules_since(before)
    return np.nan if used is None else used / times


def _peak_bytes(runs):
    """The most memory that the process holds while everything runs once."""
    if not machine.start_peak():
        return None
    for run in runs:
        run.call()
    return machine.peak_bytes()


def _timing(run, found, i):
    """What was found for one run, over all batch sizes."""
    joules = None
    if all(used is not None for _, used in found):
        joules = [used[i] for _, used in found]
        joules = None if np.isnan(joules).any() else joules
    return Timing(
        name=run.name,
        seconds=[np.median(seconds[:, i]) for seconds, _ in found],
        p95_seconds=[np.quantile(seconds[:, i], 0.95) for seconds, _ in found],
        joules=joules,
        macs=run.macs,
    )
