"""Early exits for a network that tags every character of a text.

The text is the reference that comes with Python. Its blanks are taken out, and
the network is to say at which characters a word begins. Every exit answers at
all characters of a piece; a piece leaves where its characters are sure enough,
and what "its characters" means is the policy's `reduce`:

    python examples/tagging.py               # under a minute
"""

import argparse
import pydoc_data.topics

import keras
import numpy as np
from keras import layers
from rich.console import Console
from rich.table import Table

import keras_earlyexit as ee

LENGTH, CHANNELS = 64, 48
EPOCHS, BATCH = 6, 64


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    epochs = parser.parse_args().epochs
    keras.utils.set_random_seed(0)
    console = Console()
    train, calibration, test = pieces()
    console.print(
        f"{len(train[0])} pieces of text to train on, {len(calibration[0])} "
        f"for thresholds, {len(test[0])} to test"
    )
    model = ee.add_exits(
        network(),
        exits=["block0_out", "block2_out"],
        block="dense",
        policy="max_probability",
    )
    steps = epochs * -(-len(train[0]) // BATCH)
    schedule = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    model.compile(keras.optimizers.Adam(schedule), "eenet_v0")
    with console.status(f"Training for {epochs} epochs"):
        model.fit(*train, batch_size=BATCH, epochs=epochs, verbose=0)
    console.print(exits_table(model, *test))
    console.print(routed_table(model, calibration, test))
    show(console, model, test[0][:3])


def pieces():
    """Three splits of codes (n, 64) and tags (n, 64), 1 where a word begins."""
    topics = pydoc_data.topics.topics.values()
    paragraphs = {part for text in topics for part in text.split("\n\n")}
    # Many paragraphs stand under several topics: each is in one split only.
    paragraphs = np.array(sorted(paragraphs), dtype=object)
    order = np.random.default_rng(0).permutation(len(paragraphs))
    ends = [int(len(order) * share) for share in (0.8, 0.9)]
    splits = []
    for part in np.split(paragraphs[order], ends):
        words = " ".join(part).split()
        codes = [min(ord(letter), 127) for word in words for letter in word]
        begins = np.zeros(len(codes), "int64")
        begins[np.cumsum([0, *map(len, words[:-1])])] = 1
        whole = len(codes) // LENGTH * LENGTH
        splits.append(
            (
                np.array(codes[:whole], "int32").reshape(-1, LENGTH),
                begins[:whole].reshape(-1, LENGTH),
            )
        )
    return splits


def network():
    """Residual convolutions that see further to both sides with depth."""
    codes = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(128, CHANNELS)(codes)
    for i in range(6):
        y = layers.Conv1D(CHANNELS, 5, padding="same", activation="relu")(x)
        y = layers.Conv1D(CHANNELS, 1)(y)
        x = layers.Add()([x, y])
        x = layers.LayerNormalization(name=f"block{i}_out")(x)
    tags = layers.Dense(2, activation="softmax")(x)
    return keras.Model(codes, tags, name="tagger")


def exits_table(model, x, y):
    """What every exit gets right if it answers for all pieces."""
    seen = ee.calibration.observe(model, x, y)
    table = Table(
        *("exit", "relative cost", "characters", "beginnings found"),
        title="Every exit for all pieces: what is right",
    )
    for i, name in enumerate(model.exit_names):
        right = seen.answers(i) == y
        table.add_row(
            name,
            f"{model.relative_costs[i]:.3f}",
            f"{right.mean():.2%}",
            f"{right[y == 1].mean():.2%}",
        )
    return table


def routed_table(model, calibration, test):
    """Thresholds that cost 1 point of accuracy at most, 9 times in 10.

    As far as the pieces are independent: neighbours share a subject.
    """
    x, y = test
    table = Table(
        *("reduce", "threshold", "mean cost", "characters"),
        *model.exit_names,
        title="Routed: what is right, and the share that leaves at each exit",
    )
    for reduce in ("mean", 0.1, "min"):
        model.policy = ee.policies.get("max_probability", reduce=reduce)
        report = ee.calibrate(
            model, *calibration, risk="performance_gap", epsilon=0.01
        )
        result = model.predict_exits(x)
        right = result.predictions.argmax(axis=-1) == y
        table.add_row(
            str(reduce),
            f"{report.threshold:.4f}",
            f"{result.mean_cost:.3f}",
            f"{right.mean():.2%}",
            *(f"{share:.1%}" for share in result.exit_shares(3)),
        )
    return table


def show(console, model, x):
    """A few pieces with the blanks put back, and where they left."""
    result = model.predict_exits(x)
    for codes, answer, k in zip(
        x, result.predictions.argmax(axis=-1), result.exit_index, strict=True
    ):
        text = "".join(
            " " * begins + chr(code)
            for code, begins in zip(codes, answer, strict=True)
        )
        console.print(
            f"{model.exit_names[k]}: {text}", markup=False, soft_wrap=True
        )


if __name__ == "__main__":
    main()
