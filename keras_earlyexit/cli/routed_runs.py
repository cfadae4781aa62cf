"""How long routed answers take on real samples, beside the whole model."""

import functools
import time

import numpy as np

from keras_earlyexit.profiling.bundle_runs import BundleRuns

#: So many batches, so that all kinds of samples are among them.
_BATCHES = 16
_WARM_UP = 2


def compare(model, x, batch_size, repeats, clock=time.perf_counter):
    """Times a model's routed answers and the whole model, in turn.

    Args:
        model: An `EarlyExitModel` or a bundle.
        x: Samples: an array, or arrays in a list or dict.
        batch_size: Samples in a batch.
        repeats: How often each batch is run.
        clock: A function that returns seconds; for tests.

    Returns:
        A dict of `batch_size`, `routed_seconds` and `reference_seconds` of a
        batch (of the medians over the runs of each batch, the mean over the
        batches), `reference` (what it is compared with) and `mean_cost`.
    """
    is_bundle = hasattr(model, "manifest")
    if is_bundle:
        subject, route = BundleRuns(model), model.route
    else:
        from keras_earlyexit.profiling import timed_runs

        # As the plain model is run: without looking at the samples before.
        subject, route = timed_runs.of(model), model.router.route
    routed, whole, costs = [], [], []
    for batch in _batches(x, batch_size):
        batch = subject.batch(batch, batch_size)
        # A bundle has no plain model; nobody leaving early comes nearest.
        whole.append(subject.runs(batch)[-1].call)
        given = batch[0] if is_bundle else batch
        routed.append(functools.partial(route, given))
        costs.append(model.predict_exits(given, batch_size).mean_cost)
    calls = [*routed, *whole]
    seconds = np.empty((_WARM_UP + repeats, len(calls)))
    for row in seconds:
        for i, call in enumerate(calls):
            start = clock()
            call()
            row[i] = clock() - start
    typical = np.median(seconds[_WARM_UP:], axis=0)
    return {
        "batch_size": batch_size,
        "routed_seconds": float(typical[: len(routed)].mean()),
        "reference_seconds": float(typical[len(routed) :].mean()),
        "reference": "whole bundle" if is_bundle else "plain model",
        "mean_cost": float(np.mean(costs)),
    }


def _batches(x, size):
    """Whole batches, spread over all samples."""
    x = np.asarray(x)
    count = max(min(_BATCHES, len(x) // size), 1)
    starts = np.linspace(0, max(len(x) - size, 0), count).astype(int)
    return [x[start : start + size] for start in starts]
