"""Looks at everything that an edge worker needs, one thing after another."""

import datetime
import statistics
import time
from typing import NamedTuple

import numpy as np

from protos.calling import Link
from protos.calling.connection import connect
from protos.errors import NotAllowed, SplitError, VersionMismatch
from protos.handshake import read_certificate

_DAYS_LEFT = 14
_MAX_SKEW_S = 60.0
_TIMEOUT_S = 5.0
_PINGS = 10
_RATE_ROWS = 64


class Check(NamedTuple):
    """What was found of one thing, and how to mend it."""

    name: str
    is_fine: bool
    found: str
    fix: str = ""


def examine(settings):
    """Checks bundle, certificates, connection, clock and link.

    Args:
        settings: What the flags say, see `cli.flags.Settings`.

    Returns:
        A list of `Check`. What depends on something that is broken is left
        out.
    """
    config, checks = settings.config, []
    try:
        bundle = settings.load()
        config.check_bundle(bundle.manifest)
    except (ValueError, OSError, ImportError) as error:
        bundle = None
        checks.append(_problem("bundle", error))
    else:
        checks.append(_bundle(bundle))
    for name in ("ca", "cert"):
        if getattr(config, name) is not None:
            checks.append(_certificate(name, getattr(config, name)))
    if bundle is not None:
        checks += _connection(bundle, config)
    return checks


def _bundle(bundle):
    manifest = bundle.manifest
    names = manifest.exit_names[: len(manifest.stages)]
    return Check(
        "bundle",
        True,
        f"{manifest.model_name}, {manifest.format}, exits "
        f"{', '.join(names)} of {len(manifest.exit_names)}",
    )


def _certificate(name, path):
    try:
        subject, end = read_certificate(path)
    except (ValueError, OSError) as error:
        return _problem(f"certificate ({name})", error)
    left = end - datetime.datetime.now(datetime.timezone.utc)
    return Check(
        f"certificate ({name})",
        left.days >= _DAYS_LEFT,
        f"{subject}, until {end:%Y-%m-%d}, {left.days} days",
        "" if left.days >= _DAYS_LEFT else "Make a new one now.",
    )


def _connection(bundle, config):
    try:
        link = Link.of(
            bundle.manifest,
            config.target,
            config.security,
            **config.link_options,
        )
    except ValueError as error:
        return [_problem("security", error)]
    with link:
        try:
            connection = connect(
                config.target,
                config.security,
                link.identity,
                link.options,
                _TIMEOUT_S,
            )
        except (SplitError, ValueError) as error:
            return [_problem(_name_of(error), error)]
        hello = connection.hello
        connection.close()
        first = Check(
            "cloud worker",
            True,
            f"version {hello.library_version or 'unknown'}, "
            f"{hello.generation}, {hello.max_rows} rows at once",
        )
        skew = _clock(hello.clock, connection.round_trip_s)
        return [first, skew, *_rate(link, bundle, config)]


def _name_of(error):
    if isinstance(error, VersionMismatch):
        return "same model"
    if isinstance(error, NotAllowed):
        return "permission"
    return "cloud worker"


def _clock(theirs, round_trip_s):
    skew_s = theirs - (time.time() - round_trip_s / 2)
    fine = abs(skew_s) <= _MAX_SKEW_S
    return Check(
        "clock",
        fine,
        f"{abs(skew_s):.1f} s {'behind' if skew_s > 0 else 'ahead of'} the "
        "cloud worker",
        "" if fine else "Set both clocks, or certificates are not valid.",
    )


def _rate(link, bundle, config):
    """Round trips of one sample, and bytes per second of many."""
    try:
        x = _samples(bundle)
        feature = bundle.route(x, float("inf"))
        arrays = {"feature": feature.feature}
        if feature.carry is not None:
            arrays["carry"] = feature.carry
        one = {name: array[:1] for name, array in arrays.items()}
        link.infer(one, _TIMEOUT_S)
        seconds = []
        for _ in range(_PINGS):
            started = time.monotonic()
            link.infer(one, _TIMEOUT_S)
            seconds.append(time.monotonic() - started)
        many = link.infer(arrays, _TIMEOUT_S)
    except (SplitError, ValueError) as error:
        return [_problem("answers", error)]
    trip_s = statistics.median(seconds)
    fine = trip_s < config.deadline
    rate = 8e-6 * many.bytes_up / max(many.seconds["link"], 1e-9)
    return [
        Check(
            "one sample",
            fine,
            f"{1e3 * trip_s:.1f} ms, at most {1e3 * max(seconds):.1f} ms",
            ""
            if fine
            else f"Allow more than --deadline {config.deadline:g}, or send "
            "less with --codec uint8+zstd.",
        ),
        Check(
            "many samples",
            True,
            f"{_RATE_ROWS} of {many.bytes_up / _RATE_ROWS:,.0f} bytes, at "
            f"{rate:,.1f} Mbit/s or more",
        ),
    ]


def _samples(bundle):
    rng = np.random.default_rng(0)
    samples = {}
    for spec in bundle.manifest.stages[0].inputs:
        shape = (_RATE_ROWS, *(size or 8 for size in spec.shape[1:]))
        if spec.dtype == "string":
            samples[spec.name] = np.full(shape, "some words")
        else:
            samples[spec.name] = rng.random(shape).astype(spec.dtype)
    return samples


def _problem(name, error):
    """A `Check` of an error, whose last sentence says how to mend it."""
    text = str(error)
    found, _, rest = text.partition("Received: ")
    received, dot, fix = rest.partition(". ")
    if not dot:
        return Check(name, False, text, "Look at the host and the network.")
    return Check(name, False, f"{found}Received: {received}.", fix)
