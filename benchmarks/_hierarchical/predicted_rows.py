"""What the plan says of other networks, of which only a profile is measured.

CIFAR-10's 32x32 images, one exit behind the block that a network is cut at.
Steps are measured in processor time on one core; a cloud that is so many times
as fast divides them. Half of the samples leave: 0.625 of them go up with
`non_exited`.
"""

import dataclasses
import itertools
import json
import time

from _shared import write_report

_PIXELS = 32 * 32 * 3
_SHARE = 0.5 + 0.25 * 0.5
#: Way -> share of the samples, bytes of a number of a feature.
_WAYS = {
    "all uint8": (1.0, 1.0),
    "all uint4": (1.0, 0.5),
    "non_exited uint8": (_SHARE, 1.0),
    "non_exited uint4": (_SHARE, 0.5),
}


def run(options):
    """Predicts all ways for each rate and cloud; prints and notes them."""
    rows = []
    for name, cut in itertools.product(options.networks, options.cuts):
        model, profile = _profiled(name, cut, options.batch)
        for times, rate in itertools.product(
            options.cloud_speeds, options.rates
        ):
            cloud = _faster(profile, times)
            link = rate, options.round_trip_ms / 1e3
            for row in _rows(model, profile, cloud, link, options):
                rows.append({"network": name, "cloud": times, **row})
                print(json.dumps(rows[-1]), flush=True)
    write_report(
        options.output,
        rows,
        batch=options.batch,
        round_trip_ms=options.round_trip_ms,
        compressed=options.compressed,
    )


def _profiled(name, cut, batch):
    import keras_earlyexit as ee
    from _hierarchical import setting

    model = setting.network(name, cut)
    profile = ee.cost.profile(
        model,
        (batch // 2, batch),
        repeats=3,
        training="adam",
        clock=time.process_time,
    )
    return model, profile


def _faster(profile, times):
    """The profile of a device that is so many times as fast."""

    def scaled(timing):
        seconds = tuple(value / times for value in timing.seconds)
        return dataclasses.replace(timing, seconds=seconds)

    return dataclasses.replace(
        profile,
        stages=tuple(map(scaled, profile.stages)),
        exits=tuple(map(scaled, profile.exits)),
        plain=profile.plain and scaled(profile.plain),
        training=tuple(map(scaled, profile.training)),
    )


def _rows(model, edge, cloud, link, options):
    import keras_earlyexit as ee

    rate, round_trip_s = link

    def planned(share, size):
        return ee.plan_cut(
            model,
            edge,
            cloud,
            ee.cost.Link(rate * 1e6, round_trip_s),
            mode="train",
            batch_size=options.batch,
            bytes_per_element=size * options.compressed,
            input_bytes=_PIXELS,
            forward=share,
        ).rows

    plans = {way: planned(*_WAYS[way]) for way in _WAYS}
    first = next(iter(plans.values()))
    found = [(way, x) for way in plans for x in plans[way] if x.way == "cut"]
    (whole,) = (x for x in first if x.way == "cloud")
    found.append(("all in the cloud", whole))
    found += [("split learning", x) for x in first if x.way == "split_learning"]
    for way, row in found:
        yield {
            "rate": rate,
            "way": way,
            "layer": model.exit_layers[0],
            "ms": round(1e3 * row.seconds, 1),
            "saves": round(1 - row.seconds / whole.seconds, 3),
            "edge_ms": round(1e3 * row.edge_seconds, 1),
            "link_ms": round(1e3 * row.link_seconds, 1),
            "cloud_ms": round(1e3 * row.cloud_seconds, 1),
        }
