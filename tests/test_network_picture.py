"""The drawing of a network shows its exits, their costs and who takes them."""

import keras
import numpy as np
import pytest
from matplotlib.patches import PathPatch

import keras_earlyexit as ee


def chain(exits):
    """A chain of dense layers with an exit behind all of them but the last."""
    inputs = keras.Input((4,))
    x = inputs
    for k in range(exits + 1):
        x = keras.layers.Dense(4, activation="relu", name=f"layer_{k}")(x)
    outputs = keras.layers.Dense(3, activation="softmax")(x)
    names = [f"layer_{k}" for k in range(exits)]
    model = keras.Model(inputs, outputs)
    return ee.add_exits(model, names, policy="max_probability")


@pytest.fixture(scope="module")
def model():
    return chain(2)


def result(model, exit_index):
    taken = np.asarray(exit_index)
    return ee.ExitResult(
        np.full((len(taken), 3), 1 / 3),
        taken,
        np.where(taken == 2, np.nan, 0.9),
        model.relative_costs[taken],
    )


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_rows_say_where_exits_hang_and_what_they_cost(model):
    shown = texts(ee.plots.network(model))
    assert {"layer_0", "layer_1", "(its own head)", "input"} <= set(shown)
    assert set(model.exit_names) <= set(shown)
    for cost in model.relative_costs:
        assert f"{cost:.3f}" in shown
    added = np.diff(model.relative_costs, prepend=0)
    assert [f"+{cost:.3f}" in shown for cost in added] == [True] * 3
    assert "leave" not in shown and not any("%" in text for text in shown)


def test_shares_are_those_of_the_answers(model):
    figure = ee.plots.network(model, result(model, [0] * 6 + [2] * 4))
    shown = texts(figure)
    # Who arrives at each exit, and who leaves there.
    percent = [text for text in shown if text.endswith("%")]
    assert percent == ["100.0%", "40.0%", "40.0%", "60.0%", "0.0%", "40.0%"]
    branches = [x for x in figure.axes[0].patches if isinstance(x, PathPatch)]
    heights = [x.get_path().get_extents().height for x in branches]
    assert len(heights) == 2 and heights[0] > heights[1]


def test_observations_are_routed_by_the_present_thresholds(model):
    x = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
    seen = ee.calibration.observe(model, x)
    model.policy.threshold = (np.inf, -np.inf)
    shown = texts(ee.plots.network(model, seen))
    assert [text for text in shown if text.endswith("%")] == [
        *("100.0%", "100.0%", "0.0%"),
        *("0.0%", "100.0%", "0.0%"),
    ]


def test_thirty_exits_have_a_row_each(tmp_path):
    figure = ee.plots.network(chain(30), path=tmp_path / "network.png")
    rows = {
        text.get_text(): text.get_position()[1]
        for text in figure.axes[0].texts
        if text.get_text().startswith("exit_")
    }
    assert len(rows) == 30
    gaps = np.diff(list(rows.values()))
    assert (gaps * 72 > 1.5 * 9).all(), "text of 9 points needs room"
    assert figure.get_figheight() < 12
    assert (tmp_path / "network.png").stat().st_size > 10_000


def test_names_that_look_like_mathematics_are_shown_as_they_are():
    inputs = keras.Input((4,))
    x = keras.layers.Dense(4, name="a$_{b$" + 40 * "c")(inputs)
    outputs = keras.layers.Dense(3, activation="softmax")(x)
    plain = keras.Model(inputs, outputs)
    figure = ee.plots.network(ee.add_exits(plain, ["a$_{b$" + 40 * "c"]))
    figure.canvas.draw()
    assert any(text.startswith("a$_{b$c") for text in texts(figure))


@pytest.mark.parametrize("taken", [[], [3]])
def test_answers_of_another_model_are_refused(model, taken):
    answers = ee.ExitResult(
        np.zeros((len(taken), 3)),
        np.array(taken, int),
        np.zeros(len(taken)),
        np.ones(len(taken)),
    )
    with pytest.raises(ValueError, match="Expected answers at the exits"):
        ee.plots.network(model, answers)


def test_a_model_without_exits_is_refused(model):
    with pytest.raises(TypeError, match="add_exits"):
        ee.plots.network(ee.strip_exits(model))
