"""Seconds of each way of training, over links of several rates."""

import dataclasses
import json
import tempfile

from _shared import write_report

from _hierarchical import setting
from _hierarchical.processes import Setup

#: As `runs.WAYS` and `runs.WHOLE` and `SPLIT` name them; those need Keras.
WAYS = (
    "all uint8+zstd",
    "all uint4+zstd",
    "non_exited uint8+zstd",
    "non_exited uint4+zstd",
    "whole",
    "split",
)


def run(options):
    """Runs all ways in turn for each rate; prints and notes the figures."""
    ways = options.ways or WAYS
    start = setting.Start.of(options)
    # Both processes make it too, and could not say what is wrong.
    start.check()
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Setup(folder, start, options.paced) as setup,
    ):
        for way in ways:
            # Compiles, over a link that costs nothing.
            setup.run(way, 4)
        predict = None
        if options.plan:
            from _hierarchical.predicted import Predictions

            # One after the other: two at a time share the memory's
            # bandwidth, which takes processor time.
            profiles = [
                side.ask(way="profile") for side in (setup.edge, setup.cloud)
            ]
            predict = Predictions(
                start.model(), profiles, options.round_trip_ms / 1e3
            )
        for rate in options.rates:
            setup.set_link(rate * 1e6, options.round_trip_ms / 1e3)
            for way in ways:
                row = {"rate": rate, **setup.run(way, options.steps)}
                sent = 8 * row["bytes_up"] / row["wire_up_seconds"]
                row["goodput"] = sent / (rate * 1e6)
                if predict is not None:
                    row.update(predict(row))
                rows.append(row)
                print(json.dumps(row), flush=True)
            setup.set_link()
    show(rows)
    write_report(
        options.output,
        rows,
        steps=options.steps,
        **dataclasses.asdict(start),
        paced=options.paced,
    )


def show(rows):
    """The rows as a table, each against all in the cloud."""
    whole = {row["rate"]: row for row in rows if row["way"] == "whole"}
    for row in rows:
        text = f"{row['rate']:5g} Mbit/s  {row['way']:<22}"
        text += f"{1e3 * row['seconds'] / row['steps']:8.0f} ms a batch"
        text += f"{row['bytes_up'] / row['steps'] / 1e3:8.1f} kB up"
        text += f"{row['wire_down'] / row['steps']:8.0f} B down"
        text += f"  goodput {row['goodput']:.2f}"
        if row["rate"] in whole:
            saved = 1 - row["seconds"] / whole[row["rate"]]["seconds"]
            text += f"  saves {saved:6.1%}"
        if "edge_idle" in row:
            text += f"  edge idle {row['edge_idle']:.0%}"
        if "predicted" in row:
            text += f"  predicted {row['predicted'] / row['seconds']:.2f}"
            text += f" ({row['bottleneck']})"
        print(text)
