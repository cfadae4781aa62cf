"""What becomes of a calibrated threshold when the inputs change.

Trains a small network with early exits, chooses each policy's threshold on a
calibration split, and lets test images go bad after a while: noise, blur, less
contrast, and images of nothing. Shows accuracy, cost and risk, how soon
`DriftMonitor` notices, and what calibrating again without labels mends:

    python examples/drift.py                  # digits, under a minute
    python examples/drift.py --data mnist     # MNIST, some minutes
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import warnings

import keras
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import ndimage

import keras_earlyexit as ee

# Black, and Okabe and Ito's, which stay apart for every kind of colour vision.
COLORS = (
    *("#222222", "#0072B2", "#D55E00", "#009E73"),
    *("#CC79A7", "#56B4E9", "#E69F00"),
)
POLICIES = ("max_probability", "entropy", "margin", "learned", "patience")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained on a data set, and how; `blur` is in pixels."""

    splits: tuple
    filters: int
    epochs: int
    risk: float
    blur: tuple


SETTINGS = {
    "digits": Settings(
        splits=("train", "calibration", "test"),
        filters=8,
        epochs=12,
        risk=0.05,
        blur=(0.5, 1.0),
    ),
    "mnist": Settings(
        splits=("train[:30000]", "train[58000:]", "test[:4000]"),
        filters=4,
        epochs=5,
        risk=0.02,
        blur=(1.0, 2.0),
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=sorted(SETTINGS), default="digits")
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--alpha", type=float, default=0.01)
    parser.add_argument("--orders", type=int, default=20, help="of a stream")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default="drift")
    options = parser.parse_args()
    settings = SETTINGS[options.data]
    console = Console()
    keras.utils.set_random_seed(options.seed)
    train, calibration, test = (
        ee.datasets.load(options.data, split) for split in settings.splits
    )

    def normalized(x):
        return ee.datasets.normalize(options.data, x)

    console.rule(f"{options.data}: {len(train[1])} images to train on")
    model = ee.add_exits(
        ee.backbones.eenet8(settings.filters, train[0].shape[1:], 10),
        exits=2,
        block="plain",
    )
    epochs = options.epochs or settings.epochs
    decay = keras.optimizers.schedules.CosineDecay(
        5e-3, epochs * -(-len(train[1]) // 64)
    )
    # Trains the confidences too, which the policy "learned" reads.
    model.compile(keras.optimizers.Adam(decay), "exit_scheduling")
    model.fit(
        normalized(train[0]),
        train[1],
        batch_size=64,
        epochs=epochs,
        verbose=2,
    )

    rng = np.random.default_rng(options.seed)
    traffic = {
        name: (normalized(x), labels)
        for name, x, labels in bad_images(*test, settings.blur, rng)
    }
    rows, curves = [], {}
    for policy in options.policies.split(","):
        console.print(f"Policy {policy}")
        model.policy = ee.policies.get(policy)
        reference = ee.calibration.observe(model, normalized(calibration[0]))
        threshold = calibrated(model, reference, settings.risk)
        clean = model.predict_exits(traffic["clean"][0])
        for name, (x, y) in traffic.items():
            model.policy.threshold = threshold
            stream = model.predict_exits(x)
            found, curves[policy, name] = watch(
                reference, threshold, clean, stream, options
            )
            seen = ee.calibration.observe(model, x, y)
            rows.append(
                {
                    "policy": policy,
                    "traffic": name,
                    **figures(seen, threshold),
                    **found,
                    **mended(model, seen, settings.risk),
                }
            )

    console.rule(f"{len(test[1])} test images, risk {settings.risk:g} allowed")
    console.print(as_table(rows, options.orders))
    options.output.mkdir(parents=True, exist_ok=True)
    picture = options.output / "drift.png"
    first = options.policies.split(",")[0]
    draw(first, rows, curves, options.alpha, settings.risk, picture)
    path = options.output / "figures.json"
    path.write_text(json.dumps(rows, indent=2) + "\n")
    console.print(f"Wrote {picture} and {path}")


def bad_images(x, y, blur, rng):
    """(name, images, labels) of each kind of traffic; no labels, no digits."""
    top = float(x.max())

    def noise(share):
        return x + rng.normal(0, share * top, x.shape)

    def blurred(pixels):
        return ndimage.gaussian_filter(x.astype(float), (0, pixels, pixels, 0))

    flat = rng.permuted(x.reshape(len(x), -1), axis=1)
    made = [
        ("clean", x, y),
        ("noise, weak", noise(0.15), y),
        ("noise, strong", noise(0.4), y),
        ("blur, weak", blurred(blur[0]), y),
        ("blur, strong", blurred(blur[1]), y),
        ("contrast, weak", 0.5 * x, y),
        ("contrast, strong", 0.2 * x, y),
        ("inverted", top - x, None),
        ("shuffled pixels", flat.reshape(x.shape), None),
        ("random pixels", rng.uniform(0, top, x.shape), None),
    ]
    for name, images, labels in made:
        # What a camera would give: whole numbers within its range.
        yield name, np.clip(np.rint(images), 0, top).astype("uint8"), labels


def calibrated(model, seen, risk):
    """The threshold; few samples or a bad policy may allow none but `inf`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Nobody leaves early")
        return ee.calibrate(model, seen, epsilon=risk).threshold


def watch(reference, threshold, clean, stream, options):
    """How soon a monitor finds streams that turn bad after a quarter.

    Each order shuffles the images; a stream has no image twice.
    """
    onset, delays, early = len(clean) // 40 * 10, [], 0
    for seed in range(options.orders):
        order = np.random.default_rng(seed).permutation(len(clean))
        monitor = ee.calibration.DriftMonitor(
            reference, threshold, alpha=options.alpha, seed=seed
        )
        evidence = [0.0]
        for start in range(0, len(order), 10):
            batch = rows_of(
                clean if start < onset else stream, order[start : start + 10]
            )
            report = monitor.update(batch)
            evidence.append(report.evidence)
        if report.drifted and report.since < onset:
            early += 1
        elif report.drifted:
            delays.append(report.since - onset + 1)
        if seed == 0:
            curve = 10 * np.arange(len(evidence)) - onset, evidence
    # An order without an alarm counts as longer than any.
    waits = delays + [np.inf] * (options.orders - early - len(delays))
    median = statistics.median(waits) if waits else np.inf
    return {
        "alarms": len(delays),
        "alarms_before": early,
        "alarm_after": median if np.isfinite(median) else None,
    }, curve


def rows_of(result, rows):
    return dataclasses.replace(
        result,
        **{
            field.name: getattr(result, field.name)[rows]
            for field in dataclasses.fields(result)
        },
    )


def figures(seen, threshold):
    """Cost and risks at a threshold; those that need labels may be `None`."""
    found = {
        "relative_cost": seen.mean_cost(threshold),
        "consistency": consistency(seen, threshold),
        "accuracy": None,
        "performance_gap": None,
    }
    if seen.labels is not None:
        accuracy = seen.accuracy(threshold)
        found["accuracy"] = accuracy
        found["performance_gap"] = seen.accuracy(np.inf) - accuracy
    return found


def consistency(seen, threshold):
    """How often a routed answer is not that of the whole model."""
    answers = np.stack([seen.answers(k) for k in range(3)], axis=1)
    taken = seen.exit_index(threshold)[:, None]
    routed = np.take_along_axis(answers, taken, axis=1)[:, 0]
    return float(np.mean(routed != answers[:, -1]))


def mended(model, seen, risk):
    """Calibrates without labels on half of the traffic; measures the rest."""
    half = len(seen) // 2
    threshold = calibrated(model, seen.take(slice(half)), risk)
    rest = figures(seen.take(slice(half, None)), threshold)
    return {f"{name}_after": value for name, value in rest.items()}


def as_table(rows, orders):
    table = Table()
    for column in (
        "policy",
        "traffic",
        "accuracy",
        "relative\ncost",
        "consistency\nrisk",
        "performance\ngap",
        f"alarms in\n{orders} streams",
        "median samples\nto the alarm",
        "calibrated again:\ncost, risk, accuracy",
    ):
        left = column in ("policy", "traffic")
        table.add_column(column, justify="left" if left else "right")
    for row in rows:
        after = row["alarm_after"]
        table.add_row(
            row["policy"],
            row["traffic"],
            percent(row["accuracy"]),
            f"{row['relative_cost']:.3f}",
            percent(row["consistency"]),
            percent(row["performance_gap"]),
            alarms(row),
            "-" if after is None else f"{after:.0f}",
            f"{row['relative_cost_after']:.3f}, "
            f"{percent(row['consistency_after'])}, "
            f"{percent(row['accuracy_after'])}",
            end_section=row["traffic"] == "random pixels",
        )
    return table


def alarms(row):
    """Orders with an alarm; an alarm among the clean images is a false one."""
    before = row["alarms_before"]
    return str(row["alarms"]) + (f", {before} too soon" if before else "")


def percent(value):
    return "-" if value is None else f"{value:.1%}"


def draw(policy, rows, curves, alpha, risk, path):
    """Above the evidence of one stream each, below the risks."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["policy"] == policy]
    names = [row["traffic"] for row in rows]
    # Both strengths of a corruption share a colour.
    kinds = list(dict.fromkeys(name.split(",")[0] for name in names))
    colors = dict(zip(kinds, COLORS, strict=True))
    figure = Figure(figsize=(7.2, 7.6), dpi=150, layout="constrained")
    above, below = figure.subplots(2)
    limit = -np.log(alpha)
    for name in names:
        above.plot(
            *curves[policy, name],
            color=colors[name.split(",")[0]],
            ls="--" if "weak" in name else "-",
            lw=1.6,
            label=name,
        )
    above.axhline(limit, color="#666666", lw=1, label=f"alarm at {alpha:g}")
    above.set_ylim(-0.5 * limit, 3 * limit)
    above.set_xlabel("Samples since the inputs changed")
    above.set_ylabel("Evidence of drift, log M")
    above.set_title(f"Policy {policy}")
    above.legend(frameon=False, fontsize=8, loc="upper left")
    shown = min(-curves[policy, "clean"][0][0], 400)
    above.set_xlim(-shown, shown)
    for key, offset, color, label in (
        ("consistency", -0.2, "#D55E00", "threshold of the calibration set"),
        ("consistency_after", 0.2, "#0072B2", "calibrated again, no labels"),
    ):
        below.bar(
            np.arange(len(rows)) + offset,
            [100 * row[key] for row in rows],
            width=0.4,
            color=color,
            label=label,
        )
    below.axhline(100 * risk, color="#666666", lw=1, label="risk allowed")
    below.set_xticks(range(len(names)), names, rotation=30, ha="right")
    below.set_ylabel("Consistency risk (%)")
    below.legend(frameon=False, fontsize=8)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
