"""The main job on real data, with its result as a table and a picture.

Trains a plain network and the same network with early exits alike, chooses
the threshold on a calibration split, and compares them on the test split:

    python examples/demo.py                  # digits, under two minutes
    python examples/demo.py --data mnist     # MNIST, about half an hour
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

import keras_earlyexit as ee


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained on a data set, and how."""

    splits: tuple
    epochs: int
    first_epochs: int
    batch_size: int
    risk: float


SETTINGS = {
    "digits": Settings(("train", "calibration", "test"), 24, 8, 64, 0.02),
    "mnist": Settings(
        ("train[:55000]", "train[55000:]", "test"), 3, 1, 128, 0.005
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=sorted(SETTINGS), default="digits")
    parser.add_argument("--depth", type=int, default=20, help="6n + 2")
    parser.add_argument("--exits", type=int, default=2)
    parser.add_argument("--block", default="plain", choices=ee.blocks.KINDS)
    parser.add_argument("--policy", default="max_probability")
    parser.add_argument("--epochs", type=int, help="of both networks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default="demo")
    options = parser.parse_args()
    settings = SETTINGS[options.data]
    if options.epochs is not None:
        settings = dataclasses.replace(
            settings,
            epochs=options.epochs,
            first_epochs=max(options.epochs // 2, 1),
        )
    options.output.mkdir(parents=True, exist_ok=True)
    console = Console()
    keras.utils.set_random_seed(options.seed)

    train, calibration, test = load(options.data, settings)
    console.rule(f"{options.data}: {len(train[1])} images to train on")
    plain = ee.backbones.resnet_cifar(options.depth, train[0].shape[1:], 10)
    model = ee.add_exits(
        plain,
        options.exits,
        block=options.block,
        policy=options.policy,
        copy=True,
    )

    console.print(f"The plain network, {model.plain_macs / 1e6:.1f} M MACs")
    plain.compile(
        optimizer(settings, train),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    fit(plain, train, settings)
    console.print("The same network with early exits")
    console.print(model.exit_table())
    model.compile(
        optimizer(settings, train),
        ee.objectives.TwoStage("eenet_v2", epochs=settings.first_epochs),
    )
    fit(model, train, settings)

    console.rule("The threshold, from the calibration split")
    report = ee.calibrate(
        model, *calibration, risk="performance_gap", epsilon=settings.risk
    )
    console.print(str(report))

    console.rule(f"On {len(test[1])} test images")
    rows = compare(plain, model, test)
    console.print(as_table(rows, model.exit_names))
    model.save(options.output / "model.keras")
    picture = options.output / "accuracy_cost.png"
    ee.plots.accuracy_cost_curve(
        ee.calibration.observe(model, *test),
        references={"plain model": (1.0, rows[0]["accuracy"])},
        chosen=report.threshold,
        path=picture,
    )
    figures = options.output / "figures.json"
    figures.write_text(json.dumps(rows, indent=2) + "\n")
    console.print(f"Wrote {picture}, {figures}, {options.output}/model.keras")


def load(name, settings):
    """The three splits, normalised: (x, y) each."""
    parts = [ee.datasets.load(name, split) for split in settings.splits]
    return [(ee.datasets.normalize(name, x), y) for x, y in parts]


def optimizer(settings, train):
    steps = settings.epochs * -(-len(train[1]) // settings.batch_size)
    return keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(2e-3, steps)
    )


def fit(model, train, settings):
    """Trains with one progress bar over all epochs."""
    exits = getattr(model, "exit_names", ())
    names = ["loss", "accuracy", *(f"{name}_accuracy" for name in exits)]
    bar = keras.utils.Progbar(
        settings.epochs, unit_name="epoch", stateful_metrics=names
    )

    class Progress(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            shown = [(name, logs[name]) for name in names if name in logs]
            bar.update(epoch + 1, shown)

    model.fit(
        *train,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        verbose=0 if len(train[1]) < 10000 else 1,
        callbacks=[Progress()] if len(train[1]) < 10000 else None,
    )


def compare(plain, model, test):
    """One row each for the plain network, every exit alone, and routed."""
    x, y = test
    forward = tf.function(
        lambda batch: plain(batch, training=False),
        input_signature=[tf.TensorSpec((None, *x.shape[1:]), tf.float32)],
    )
    routed_threshold = model.policy.threshold
    early = len(model.exit_names) - 1

    def routed(batch):
        return model.predict_exits(batch).predictions

    rows = [row("plain", lambda b: forward(b).numpy(), x, y, 1.0, None)]
    for i, name in enumerate(model.exit_names):
        # Nobody leaves before this exit, everybody leaves here.
        model.policy.threshold = [
            -np.inf if k == i else np.inf for k in range(early)
        ]
        cost = float(model.relative_costs[i])
        rows.append(row(name, routed, x, y, cost, None))
    model.policy.threshold = routed_threshold
    result = model.predict_exits(x)
    shares = result.exit_shares(early + 1).tolist()
    rows.append(row("routed", routed, x, y, result.mean_cost, shares))
    return rows


def row(name, answer, x, y, cost, shares):
    found = np.concatenate(
        [answer(x[i : i + 256]) for i in range(0, len(x), 256)]
    )
    return {
        "name": name,
        "accuracy": float((found.argmax(axis=-1) == y).mean()),
        "relative_cost": cost,
        "shares": shares,
        "milliseconds_batch_1": 1000 * seconds(answer, x, 1, repeats=300),
        "milliseconds_batch_256": 1000 * seconds(answer, x, 256, repeats=15),
    }


def seconds(answer, x, size, repeats):
    """Seconds per sample: the mean over batches of their median over runs."""
    batches = [x[i : i + size] for i in range(0, min(len(x), 50 * size), size)]
    batches = [batch for batch in batches if len(batch) == size] or [x]
    answer(batches[0])
    times = [[] for _ in batches]
    for i in range(max(repeats, 3 * len(batches))):
        batch = batches[i % len(batches)]
        start = time.perf_counter()
        answer(batch)
        times[i % len(batches)].append(time.perf_counter() - start)
    middle = [statistics.median(found) for found in times]
    return statistics.mean(middle) / len(batches[0])


def as_table(rows, exit_names):
    table = Table()
    for column in (
        "",
        "accuracy",
        "relative cost",
        "ms per image,\nbatch 1",
        "ms per image,\nbatch 256",
        "share leaving at\n" + " / ".join(exit_names),
    ):
        table.add_column(column, justify="right" if column else "left")
    for found in rows:
        shares = found["shares"] or []
        table.add_row(
            found["name"],
            f"{found['accuracy']:.2%}",
            f"{found['relative_cost']:.3f}",
            f"{found['milliseconds_batch_1']:.2f}",
            f"{found['milliseconds_batch_256']:.3f}",
            " / ".join(f"{share:.1%}" for share in shares),
            style="bold" if found["name"] == "routed" else None,
        )
    return table


if __name__ == "__main__":
    main()
