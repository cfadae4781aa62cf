"""How many exits, where, and with which thresholds: searched, not guessed.

Trains a plain network, hangs an exit on every block end, looks once at images
that are set apart for the search, and finds the choice that is most accurate
within a budget. Its threshold is set anew on a calibration split, with a
guarantee, and the test split says what all that is worth:

    python examples/tuning.py                # digits, about a minute
    python examples/tuning.py --data mnist   # MNIST, under five minutes

An interrupted run goes on where it was with the same `--output`.
"""

import argparse
import dataclasses
import json
import pathlib

import keras

import keras_earlyexit as ee

BATCH = 64


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained on a data set, and which parts do what."""

    train: str
    search: str
    calibration: str
    test: str
    epochs: int
    exit_epochs: int


SETTINGS = {
    "digits": Settings(
        "train", "calibration[:200]", "calibration[200:]", "test", 20, 10
    ),
    "mnist": Settings(
        "train[:10000]", "train[50000:55000]", "train[55000:]", "test", 2, 2
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=sorted(SETTINGS), default="digits")
    parser.add_argument("--budget", type=float, default=0.4)
    parser.add_argument("--epsilon", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default="tuning")
    options = parser.parse_args()
    settings = SETTINGS[options.data]
    options.output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(options.seed)
    train = load(options.data, settings.train)
    plain = trained(options, settings, train)
    print("\n1. An exit on every block end, trained on the frozen network")
    found = ee.tuning.search_exits(
        plain,
        *load(options.data, settings.search),
        train=train,
        epochs=settings.exit_epochs,
        batch_size=BATCH,
        optimizer=keras.optimizers.Adam(3e-2),
        max_cost=options.budget,
        directory=options.output,
    )
    print(f"\n2. The search, at most {options.budget:.0%} of the work")
    print(found)
    print("\n3. The threshold anew, on the calibration split")
    model, report = found.calibrate(
        *load(options.data, settings.calibration),
        risk="performance_gap",
        epsilon=options.epsilon,
    )
    print(report)
    print("\n4. The test split")
    x, y = load(options.data, settings.test)
    on_test = found.measure(x, y)
    result = model.predict_exits(x)
    right = float((result.predictions.argmax(axis=-1) == y).mean())
    exact = float((plain.predict(x, verbose=0).argmax(axis=-1) == y).mean())
    print(f"plain network: accuracy {exact:.2%} at a cost of 1")
    print(
        f"tuned: accuracy {right:.2%} at a cost of {result.mean_cost:.3f}, "
        f"exits behind {', '.join(model.exit_layers)}"
    )
    picture = options.output / "front.png"
    found.plot(picture, on_test)
    file = options.output / "tuned.keras"
    model.save(file)
    figures = options.output / "figures.json"
    figures.write_text(
        json.dumps(
            {
                "exits": list(model.exit_layers),
                "accuracy": right,
                "cost": result.mean_cost,
                "plain_accuracy": exact,
                "configurations": found.evaluated,
            },
            indent=1,
        )
        + "\n"
    )
    print(f"Wrote {picture}, {file} and {figures}")


def load(name, split):
    x, y = ee.datasets.load(name, split)
    return ee.datasets.normalize(name, x), y


def trained(options, settings, train):
    """The plain network, from before if it is there."""
    file = options.output / "plain.keras"
    if file.exists():
        print(f"The plain network is there: {file}")
        return keras.models.load_model(file)
    x, y = train
    plain = network(x.shape[1:])
    plain.compile(
        keras.optimizers.Adam(3e-3),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    print(f"Training a plain network on {len(x)} images of {options.data}")
    plain.fit(x, y, BATCH, epochs=settings.epochs, verbose=2)
    plain.save(file)
    return plain


def network(shape):
    """Eight convolutions; larger images are made smaller by the first one."""
    inputs = keras.Input(shape)
    x = inputs
    large = shape[0] > 16
    for i, filters in enumerate((16, 16, 16, 16, 32, 32, 32, 32)):
        strides = 2 if i == 4 or (large and i == 0) else 1
        x = keras.layers.Conv2D(
            filters, 3, strides, padding="same", use_bias=False
        )(x)
        x = keras.layers.BatchNormalization(momentum=0.9)(x)
        x = keras.layers.ReLU(name=f"block{i + 1}")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(10, activation="softmax")(x)
    return keras.Model(inputs, outputs, name="eight_blocks")


if __name__ == "__main__":
    main()
