"""Early exits for rows of a table: dense layers on real measurements.

The data come with scikit-learn: 30 measurements of cells, and whether a tumour
is benign. Most rows are easy, so most leave after the first layers:

    python examples/tabular.py               # under half a minute
"""

import keras
import numpy as np
from keras import layers
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_breast_cancer

import keras_earlyexit as ee

UNITS, DEPTH, EPOCHS = 64, 6, 60


def main():
    keras.utils.set_random_seed(0)
    console = Console()
    names, (train, calibration, test) = splits()
    console.print(
        f"{len(names)} measurements; {len(train[1])} rows to train on, "
        f"{len(calibration[1])} for the threshold, {len(test[1])} to test"
    )
    model = ee.add_exits(
        network(train[0]),
        exits=["block_1", "block_3"],
        policy="max_probability",
    )
    model.compile(keras.optimizers.Adam(1e-3), "branchynet")
    with console.status(f"Training for {EPOCHS} epochs"):
        model.fit(*train, batch_size=32, epochs=EPOCHS, verbose=0)
    # So few samples can vouch for little: 5 answers in 100 may differ from the
    # whole network's, and one time in five more.
    report = ee.calibrate(
        model, *calibration, risk="consistency", epsilon=0.05, delta=0.2
    )
    print(report)
    console.print(table(model, *test))


def splits():
    """Names of the columns, and three splits (x, y) of the rows."""
    data = load_breast_cancer()
    x, y = data.data.astype("float32"), data.target.astype("int64")
    order = np.random.default_rng(0).permutation(len(x))
    parts = np.split(order, [269, 419])
    return data.feature_names, [(x[part], y[part]) for part in parts]


def network(x):
    """Dense layers; the columns are brought to one scale by the first."""
    scale = layers.Normalization(name="scale")
    scale.adapt(x)
    inputs = keras.Input(x.shape[1:], name="row")
    hidden = scale(inputs)
    for i in range(DEPTH):
        hidden = layers.Dense(UNITS, activation="relu", name=f"dense_{i}")(
            hidden
        )
        hidden = layers.Dropout(0.2, name=f"block_{i}")(hidden)
    answer = layers.Dense(2, activation="softmax")(hidden)
    return keras.Model(inputs, answer, name="rows")


def table(model, x, y):
    """What each exit gets right alone, and what the routed answers do."""
    seen = ee.calibration.observe(model, x, y)
    result = model.predict_exits(x)
    rows = Table("", "accuracy", "relative cost", "share that leaves")
    shares = result.exit_shares(len(model.exit_names))
    for k, name in enumerate(model.exit_names):
        rows.add_row(
            f"{name} alone",
            f"{seen.exit_accuracies()[k]:.1%}",
            f"{model.relative_costs[k]:.3f}",
            f"{shares[k]:.1%}",
        )
    right = result.predictions.argmax(axis=-1) == y
    rows.add_row("routed", f"{right.mean():.1%}", f"{result.mean_cost:.3f}", "")
    return rows


if __name__ == "__main__":
    main()
