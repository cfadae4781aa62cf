"""What the plan says of other networks, of which only a profile is measured.

CIFAR-10's 32x32 images, one exit behind the block that a network is cut at.
Steps are measured in processor time on one core; a cloud that is so many times
as fast divides them. Half of the samples leave: 0.625 of them go up with
`non_exited`.
"""

import dataclasses
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
    for name in options.networks:
        model, profile = _profiled(name, options.batch)
        for times in options.cloud_speeds:
            cloud = _faster(profile, times)
            for rate in options.rates:
                link = rate, options.round_trip_ms / 1e3
                for row in _rows(model, profile, cloud, link, options.batch):
                    row = {"network": name, "cloud": times, **row}
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    write_report(
        options.output,
        rows,
        batch=options.batch,
        round_trip_ms=options.round_trip_ms,
    )


def _profiled(name, batch):
    import keras

    import keras_earlyexit as ee

    keras.utils.set_random_seed(0)
    if name == "resnet18":
        plain = ee.backbones.resnet(18, (32, 32, 3), 10)
        layer = "block4_out"
    else:
        plain = _vgg16()
        layer = "pool4"
    model = ee.add_exits(plain, [layer], policy="max_probability")
    profile = ee.cost.profile(
        model,
        (batch // 2, batch),
        repeats=3,
        training="adam",
        clock=time.process_time,
    )
    return model, profile


def _vgg16():
    """VGG-16 as it is used for small images: one dense layer at its end."""
    import keras

    image = x = keras.Input((32, 32, 3))
    widths = (64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3
    for i, filters in enumerate(widths, start=1):
        for number in filters:
            x = keras.layers.Conv2D(number, 3, padding="same")(x)
            x = keras.layers.BatchNormalization()(x)
            x = keras.layers.ReLU()(x)
        x = keras.layers.MaxPooling2D(name=f"pool{i}")(x)
    x = keras.layers.Flatten()(x)
    outputs = keras.layers.Dense(10, activation="softmax")(x)
    return keras.Model(image, outputs, name="vgg16")


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


def _rows(model, edge, cloud, link, batch):
    import keras_earlyexit as ee

    rate, round_trip_s = link

    def planned(share, size):
        return ee.plan_cut(
            model,
            edge,
            cloud,
            ee.cost.Link(rate * 1e6, round_trip_s),
            mode="train",
            batch_size=batch,
            bytes_per_element=size,
            input_bytes=_PIXELS,
            forward=share,
        ).rows

    found = [(way, "cut", planned(*_WAYS[way])) for way in _WAYS]
    first = found[0][2]
    found += [("all in the cloud", "cloud", first)]
    found += [("split learning", "split_learning", first)]
    (whole,) = (x for x in first if x.way == "cloud")
    for name, way, rows in found:
        (row,) = (x for x in rows if x.way == way)
        yield {
            "rate": rate,
            "way": name,
            "ms": round(1e3 * row.seconds, 1),
            "saves": round(1 - row.seconds / whole.seconds, 3),
            "edge_ms": round(1e3 * row.edge_seconds, 1),
            "link_ms": round(1e3 * row.link_seconds, 1),
            "cloud_ms": round(1e3 * row.cloud_seconds, 1),
        }
