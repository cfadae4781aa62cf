"""Early exits for text: a small transformer whose exits read all tokens.

By default it tells lines of code from lines of prose, in what comes with
Python, so that no network is needed. `sst2` (is the review kind?) is from TFDS:

    python examples/text.py                  # about a minute
    python examples/text.py --data sst2      # some minutes
"""

import argparse
import collections
import pathlib
import pydoc_data.topics
import re
import sysconfig

import keras
import numpy as np
from keras import layers
from rich.console import Console
from rich.table import Table

import keras_earlyexit as ee

LENGTH, VOCABULARY, WIDTH, DEPTH, BATCH = 24, 4000, 48, 4, 64
LABELS = {"python": ("prose", "code"), "sst2": ("unkind", "kind")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=sorted(LABELS), default="python")
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    console = Console()
    train, calibration, test = splits(options.data)
    known = vocabulary(train[0])
    console.print(
        f"{len(train[1])} texts to train on, {len(calibration[1])} for the "
        f"threshold, {len(test[1])} to test; {len(known)} words"
    )
    model = ee.add_exits(
        network(),
        exits=["block0_out", "block1_out"],
        block="token",
        policy="max_probability",
    )
    model.compile(keras.optimizers.Adam(1e-3), "branchynet")
    with console.status(f"Training for {options.epochs} epochs"):
        model.fit(
            *(tokens(train[0], known), train[1]),
            batch_size=BATCH,
            epochs=options.epochs,
            verbose=0,
        )
    print(
        ee.calibrate(
            *(model, tokens(calibration[0], known), calibration[1]),
            risk="performance_gap",
            epsilon=0.02,
        )
    )
    show(console, model, test, known, LABELS[options.data])


def splits(data):
    """Texts and labels to train on, for the threshold, and to test."""
    if data == "sst2":
        parts = ("train[:20000]", "train[60000:]", "validation")
        return [ee.datasets.load("glue/sst2", part) for part in parts]
    topics = pydoc_data.topics.topics.values()
    prose = lines(topics)
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    code = lines(path.read_text("utf-8") for path in library.glob("a*.py"))
    count = min(len(prose), len(code))
    rng = np.random.default_rng(0)
    texts = np.array(
        [*rng.permutation(prose)[:count], *rng.permutation(code)[:count]],
        dtype=object,
    )
    labels = np.repeat([0, 1], count)
    order = rng.permutation(2 * count)
    ends = [count, count * 3 // 2]
    return [(texts[part], labels[part]) for part in np.split(order, ends)]


def lines(texts):
    """The lines of texts that have at least four words, no two alike."""
    found = {line.strip() for text in texts for line in text.splitlines()}
    long = sorted(line for line in found if len(line.split()) > 3)
    return list({tuple(words(line)): line for line in long}.values())


def words(text):
    return re.findall(r"\w+|[^\w\s]", text.lower())[:LENGTH]


def vocabulary(texts):
    """Number of each known word; 0 is no word, 1 one that is not known."""
    counts = collections.Counter(word for text in texts for word in words(text))
    common = counts.most_common(VOCABULARY - 2)
    return {word: number for number, (word, _) in enumerate(common, 2)}


def tokens(texts, known):
    """Numbers of the words, (n, LENGTH) int32, 0 behind the last."""
    found = np.zeros((len(texts), LENGTH), "int32")
    for row, text in zip(found, texts, strict=True):
        numbers = [known.get(word, 1) for word in words(text)]
        row[: len(numbers)] = numbers
    return found


def network():
    """Transformer blocks over tokens, then the mean of all tokens."""
    inputs = keras.Input((LENGTH,), dtype="int32", name="tokens")
    x = layers.Embedding(VOCABULARY, WIDTH)(inputs)
    # So that the order of words is seen.
    x = layers.Conv1D(WIDTH, 3, padding="same")(x)
    for i in range(DEPTH):
        y = layers.LayerNormalization()(x)
        y = layers.MultiHeadAttention(4, WIDTH // 4, dropout=0.1)(y, y)
        x = layers.Add()([x, y])
        y = layers.LayerNormalization()(x)
        y = layers.Dense(2 * WIDTH, activation="gelu")(y)
        y = layers.Dense(WIDTH)(y)
        x = layers.Add(name=f"block{i}_out")([x, y])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    answer = layers.Dense(2, activation="softmax")(x)
    return keras.Model(inputs, answer, name="text")


def show(console, model, test, known, labels):
    """The routed answers as a table, and what left first and last."""
    texts, y = test
    x = tokens(texts, known)
    seen = ee.calibration.observe(model, x, y)
    result = model.predict_exits(x)
    shares = result.exit_shares(len(model.exit_names))
    table = Table("", "accuracy", "relative cost", "share that leaves")
    for k, name in enumerate(model.exit_names):
        table.add_row(
            f"{name} alone",
            f"{seen.exit_accuracies()[k]:.1%}",
            f"{model.relative_costs[k]:.3f}",
            f"{shares[k]:.1%}",
        )
    right = result.predictions.argmax(axis=-1) == y
    table.add_row(
        "routed", f"{right.mean():.1%}", f"{result.mean_cost:.3f}", ""
    )
    console.print(table)
    for k in (0, len(model.exit_names) - 1):
        for i in np.flatnonzero(result.exit_index == k)[:4]:
            console.print(
                f"{model.exit_names[k]}, {labels[y[i]]}: {texts[i]}",
                markup=False,
                highlight=False,
            )


if __name__ == "__main__":
    main()
