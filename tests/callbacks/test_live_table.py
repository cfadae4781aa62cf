"""The table of a training that runs: in terminals, and elsewhere."""

import io
import sys
import types

import keras
import numpy as np
import pytest
from rich.console import Console

import keras_earlyexit as ee
from keras_earlyexit.callbacks import figures


@pytest.fixture
def model():
    inputs = keras.Input((4,))
    x = keras.layers.Dense(4, activation="relu", name="first")(inputs)
    x = keras.layers.Dense(4, activation="relu", name="second")(x)
    outputs = keras.layers.Dense(3, activation="softmax")(x)
    model = ee.add_exits(keras.Model(inputs, outputs), ["first"])
    model.compile("adam", "branchynet")
    model.policy = ee.policies.get("max_probability", threshold=0.2)
    return model


def fit(model, console, **options):
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    y = np.arange(64) % 3
    table = ee.callbacks.LiveTable(console, **options)
    history = model.fit(
        x, y, epochs=2, validation_data=(x, y), callbacks=[table]
    )
    return table, history.history


def test_elsewhere_it_is_a_line_for_each_epoch(model, capsys):
    console = Console(file=io.StringIO(), width=80)
    _, history = fit(model, console)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 2 and "\x1b" not in console.file.getvalue()
    assert lines[0].startswith("epoch 1/2 | ") and " left | " in lines[0]
    assert lines[1].startswith("epoch 2/2 | ") and " left | " not in lines[1]
    accuracy = history["val_routed_accuracy"][1]
    assert f"routed {accuracy:.1%}" in lines[1]
    assert f"cost {history['val_mean_cost'][1]:.3f}" in lines[1]
    assert "shares 100.0% 0.0%" in lines[1]
    # Keras' progress bar stays away.
    assert capsys.readouterr().out == ""


def test_in_a_terminal_it_is_a_table_that_changes(model, capsys):
    console = Console(
        file=io.StringIO(), width=80, force_terminal=True, color_system=None
    )
    _, history = fit(model, console)
    shown = console.file.getvalue()
    # It moves up, to draw itself anew, and gives the cursor back.
    assert "\x1b[1A" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    last = shown[shown.rindex("┏") :]
    for name in (*model.exit_names, "routed"):
        assert f"│ {name} " in last
    assert f"{history['val_final_accuracy'][1]:.1%}" in last
    assert f"{history['val_mean_cost'][1]:.3f}" in last
    assert capsys.readouterr().out == ""


def test_the_terminal_is_given_back_after_an_error(model):
    console = Console(file=io.StringIO(), force_terminal=True)

    class Fails(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    table = ee.callbacks.LiveTable(console)
    with pytest.raises(KeyboardInterrupt):
        model.fit(np.ones((8, 4)), np.ones(8, int), callbacks=[table, Fails()])
    assert "\x1b[?25h" in console.file.getvalue()


def test_in_a_notebook_nothing_moves_the_cursor(model, monkeypatch):
    shell = types.SimpleNamespace(kernel=object())
    module = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", module)
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    fit(model, console)
    assert "\x1b[1A" not in console.file.getvalue()
    assert len(console.file.getvalue().splitlines()) == 2


def test_a_progress_bar_that_is_asked_for_is_shown(model, capsys):
    table = ee.callbacks.LiveTable(Console(file=io.StringIO()))
    model.fit(np.ones((8, 4)), np.ones(8, int), callbacks=[table], verbose=2)
    assert "loss" in capsys.readouterr().out


def test_values_have_an_error_instead_of_an_accuracy():
    inputs = keras.Input((4,))
    x = keras.layers.Dense(4, name="first")(inputs)
    outputs = keras.layers.Dense(1)(keras.layers.Dense(4, name="second")(x))
    model = ee.add_exits(
        keras.Model(inputs, outputs), ["first"], task="regression"
    )
    model.compile("adam")
    console = Console(file=io.StringIO(), width=80)
    table = ee.callbacks.LiveTable(console)
    model.fit(np.ones((8, 4)), np.ones((8, 1)), callbacks=[table])
    assert "train exit_0 " in table.line() and "%" not in table.line()
    assert table.table().caption.startswith("mean absolute error  loss ")


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("loss", "loss/total"),
        ("cost_loss", "loss/cost"),
        ("mean_cost", "cost/routed"),
        ("exit_0_accuracy", "accuracy/exit_0"),
        ("final_share", "share/final"),
        ("routed_top_k_accuracy", "top_k_accuracy/routed"),
        ("learning_rate", "learning_rate"),
    ],
)
def test_tags(name, tag):
    assert figures.tag(name, ("exit_0", "final")) == tag
