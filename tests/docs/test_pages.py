"""Every piece of Python in the guide runs as it stands there."""

import contextlib
import json
import os
import shutil
import subprocess
import sys

import guide
import keras
import numpy as np
import pytest

import keras_earlyexit as ee

# How well so short a training goes is not what is tested.
pytestmark = pytest.mark.filterwarnings("ignore:Nobody leaves early")
# What a page expects of its reader beyond the setting of the guide, by page.
_PREPARED = {}
_STARTED = "get-started.md"
PAGES = sorted(
    path.name for path in guide.DOCS.glob("*.md") if any(guide.blocks(path))
)


def prepares(page):
    def note(function):
        _PREPARED[page] = function
        return function

    return note


@contextlib.contextmanager
def cloud_worker(*flags):
    """A cloud worker as a process; yields where it listens."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "cloud_worker", "serve"),
            *("--listen", "127.0.0.1:0", *flags),
        ],
        env={**os.environ, "PYTHONPATH": str(guide.ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        for line in process.stdout:
            if "address" in (said := json.loads(line)):
                break
        yield said["address"]
    finally:
        process.terminate()
        # A pipe has to be read for its writer to end.
        process.communicate(timeout=60)


def certificates():
    """Certificates as the guide has them made; returns the worker's flags."""
    from keras_earlyexit import cli

    assert not cli.main(
        ["certs", "-o", "certs", "--cloud", "127.0.0.1", "--edge", "edge-1"]
    )
    return (
        *("--tls-cert", "certs/cloud.pem", "--tls-key", "certs/cloud.key"),
        *("--client-ca", "certs/ca.pem"),
    )


@prepares("adding-exits.md")
@contextlib.contextmanager
def _(names):
    yield [("block3_out", "block1_out"), ("block6_out", "block2_out")]


@prepares("edge-worker.md")
@contextlib.contextmanager
def _(names):
    ee.export(names["model"], "digits_cut", cut="exit_0")
    names["x"] = names["x_test"][:32]
    flags = ("--bundle", "digits_cut/segment_1", *certificates())
    with cloud_worker(*flags) as address:
        yield [("cloud.example.org:50051", address)]
    assert set(names["result"].answered_by) <= {"edge", "cloud"}


@prepares("split-training.md")
@contextlib.contextmanager
def _(names):
    model = names["model"]
    model.save("model.keras")
    names.update(x=names["x_train"][:64], y=names["y_train"][:64])
    flags = certificates()
    for source, target in (
        ("ca.pem", "ca.pem"),
        ("edges/edge-1.pem", "edge.pem"),
        ("edges/edge-1.key", "edge.key"),
    ):
        shutil.copy(f"certs/{source}", target)
    flags = ("--train", "--model", "model.keras", "--cut", "exit_0", *flags)
    with cloud_worker(*flags) as address:
        yield [("cloud.example.org:50052", address)]
    assert os.path.exists("edge.keras")


def dense_network():
    """A network of digits that is made ready in no time."""
    row = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(row)
    # A narrow beginning, so that half of the cost pays for an exit.
    for units in (16, 48, 48):
        x = keras.layers.Dense(units, activation="relu")(x)
    answer = keras.layers.Dense(10, activation="softmax")(x)
    plain = keras.Model(row, answer)
    plain.compile("adam", "sparse_categorical_crossentropy")
    return plain


@prepares("planning.md")
@contextlib.contextmanager
def _(names):
    # The steps of every segment are compiled here.
    names["model"] = ee.add_exits(dense_network(), 1)
    profile = ee.cost.profile(names["model"], batch_sizes=(1, 32), repeats=3)
    for name in ("edge.json", "cloud.json"):
        profile.save(name)
    names["x"] = names["x_calibration"]
    yield


@prepares("thresholds.md")
@contextlib.contextmanager
def _(names):
    thresholds = np.linspace(1, 0, 11)
    seen = ee.calibration.observe(
        names["model"], names["x_calibration"], names["y_calibration"]
    )
    taken = seen.exit_index_grid(thresholds)
    wrong = np.stack([seen.answers(k) != seen.labels for k in range(3)], axis=1)
    names.update(
        thresholds=thresholds,
        losses=np.take_along_axis(wrong * 1.0, taken, axis=1),
        late=(taken == 2) * 1.0,
    )
    yield


@prepares("drift.md")
@contextlib.contextmanager
def _(names):
    names["traffic"] = np.split(names["x_test"], 4)
    names["x_recent"] = names["x_calibration"]
    yield


@prepares("objectives.md")
@contextlib.contextmanager
def _(names):
    names["trained_keras_model"] = names["plain"]
    names["x_val"], names["y_val"] = names["x_test"], names["y_test"]
    yield


@prepares("report.md")
@contextlib.contextmanager
def _(names):
    sentences = [
        f"{who} {what} it {how}"
        for who in ("we", "they", "critics", "children")
        for what in ("loved", "liked", "left", "hated")
        for how in ("today", "again", "early")
    ]
    words = sorted({word for text in sentences for word in text.split()})
    tokens = np.array(
        [[words.index(word) for word in text.split()] for text in sentences]
    )
    inputs = keras.Input((4,), dtype="int32")
    x = keras.layers.Embedding(len(words), 8)(inputs)
    x = keras.layers.Dense(8, activation="relu", name="first")(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    x = keras.layers.Dense(8, activation="relu")(x)
    outputs = keras.layers.Dense(2, activation="softmax")(x)
    text_model = ee.add_exits(
        keras.Model(inputs, outputs), exits=["first"], block="token"
    )
    names.update(
        sentences=sentences,
        tokens=tokens,
        labels=np.array(["l" in text.split()[1][:1] for text in sentences]) * 1,
        text_model=text_model,
    )
    yield


@prepares("tuning.md")
@contextlib.contextmanager
def _(names):
    import optuna

    plain = dense_network()
    x, y = names["x_train"], names["y_train"]
    plain.fit(x, y, epochs=8, verbose=0)
    candidates = ee.tuning.train_candidates(plain, x, y, epochs=1)
    names.update(
        plain=plain,
        x_search=names["x_test"],
        y_search=names["y_test"],
        cloud=ee.cost.profile(candidates, batch_sizes=(1,), repeats=3),
        costs=np.array([0.2, 0.5, 1.0]),
        accuracies=np.array([0.8, 0.7, 0.9]),
        **dict(build=dense_network, optuna=optuna, x=x, y=y),
        **dict(x_val=names["x_test"], y_val=names["y_test"]),
    )
    # Fewer trials and runs, and what so small a network can reach.
    yield [
        ("profile(trained)", "profile(trained, (1,), repeats=3)"),
        ("budget=0.4", "budget=0.6"),
        ("max_trials=30", "max_trials=1"),
        ("n_trials=30", "n_trials=1"),
        ("exits=(1, 4)", "exits=(1, 2)"),
        ("min_accuracy=0.95", "min_accuracy=0.5"),
        ("min_accuracy=0.93", "min_accuracy=0.5"),
        ("epsilon=0.02", "epsilon=0.1"),
    ]


@contextlib.contextmanager
def _nothing(names):
    yield


@pytest.mark.parametrize("page", [x for x in PAGES if x != _STARTED])
def test_a_page(page, setting):
    with _PREPARED.get(page, _nothing)(setting) as replaced:
        guide.run(guide.DOCS / page, setting, replaced or ())


def test_the_page_to_start_with(started):
    names, path = started
    assert names["report"].n == 397 and names["result"].mean_cost < 1.0
    assert path.exists()


def test_the_readme(setting):
    setting["keras_model"] = setting["plain"]
    setting.update(x=setting["x_train"], y=setting["y_train"])
    setting.update(x_val=setting["x_test"], y_val=setting["y_test"])
    guide.run(guide.ROOT / "README.md", setting)
