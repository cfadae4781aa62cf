"""Figures hold the numbers they should, and leave no trace in matplotlib."""

import dataclasses
import subprocess
import sys
import types

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

import keras_earlyexit as ee
from keras_earlyexit.calibration import Observations, calibrate

NAMES = ("exit_0", "exit_1", "final")


def observations(task="classification", classes=10, n=2000, policy="learned"):
    """Three exits that get better, with scores that know something of it."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, n)
    hardness = rng.random(n)
    scores, predictions = [], []
    for skill in (0.6, 0.8, 0.95):
        right = hardness < skill
        found = np.where(right, labels, rng.integers(0, classes, n))
        predictions.append(np.eye(classes, dtype="float32")[found])
        scores.append(1 - hardness + 0.2 * rng.standard_normal(n) * skill)
    head = ee.tasks.Head(classes, "softmax", task)
    if task == "regression":
        predictions = [hardness[:, None] * k for k in (1.5, 1.2, 1.1)]
        labels, head = hardness[:, None], ee.tasks.Head(1, "linear", task)
    return Observations(
        scores=np.stack(scores[:2], axis=1).astype("float32"),
        predictions=predictions,
        labels=labels,
        relative_costs=np.array([0.2, 0.55, 1.02]),
        exit_names=NAMES,
        head=head,
        policy_name=policy,
    )


@pytest.fixture(scope="module")
def seen():
    return observations()


@pytest.fixture(scope="module")
def report(seen):
    model = types.SimpleNamespace(
        policy=ee.policies.get("learned"), relative_costs=seen.relative_costs
    )
    return calibrate(model, seen, risk="performance_gap", epsilon=0.05)


@pytest.fixture(autouse=True)
def leaves_no_trace():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


def legend_texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def lines(axes):
    return {line.get_label(): line.get_xydata() for line in axes.lines}


def test_curve_shows_costs_and_accuracies(seen):
    figure = ee.plots.accuracy_cost_curve(seen)
    (axes,) = figure.axes
    drawn = lines(axes)
    _, costs, values = seen.curve()
    np.testing.assert_allclose(
        drawn["routed by learned"], 100 * np.stack([costs, values], axis=1)
    )
    alone = np.stack([seen.relative_costs, seen.exit_accuracies()], axis=1)
    np.testing.assert_allclose(drawn["one exit alone"], 100 * alone)
    np.testing.assert_allclose(
        drawn["plain model"], [[100, 100 * seen.exit_accuracies()[-1]]]
    )
    assert {text.get_text() for text in axes.texts} == set(NAMES)
    assert "%" in axes.get_xlabel() and axes.get_ylabel() == "Accuracy (%)"


@pytest.mark.parametrize("by_report", [True, False])
def test_curve_marks_what_was_chosen(seen, report, by_report):
    threshold = report.threshold
    chosen = report if by_report else threshold
    figure = ee.plots.accuracy_cost_curve(seen, chosen=chosen)
    (text,) = [t for t in legend_texts(figure) if "threshold" in t]
    place = 100 * np.array(
        [seen.mean_cost(threshold), seen.accuracy(threshold)]
    )
    np.testing.assert_allclose(lines(figure.axes[0])[text], [place])


def test_curves_by_name_share_exits_and_take_references(seen):
    figure = ee.plots.accuracy_cost_curve(
        {"learned": seen, "noise": observations(n=1999)},
        references={"plain model, alone": 0.96, "small net": (0.3, 0.8)},
        chosen={"noise": [0.5, 0.4]},
    )
    texts = legend_texts(figure)
    assert texts[0] == "learned" and "noise" in texts
    assert texts[-2:] == ["plain model, alone", "small net"]
    assert any("thresholds per exit" in text for text in texts)
    np.testing.assert_allclose(lines(figure.axes[0])["small net"], [[30, 80]])
    twice = ee.plots.accuracy_cost_curve({"a": seen, "b": seen})
    assert len(twice.axes[0].texts) == 3


def test_curve_of_values_shows_errors():
    seen = observations("regression")
    figure = ee.plots.accuracy_cost_curve(seen)
    (axes,) = figure.axes
    assert axes.get_ylabel().startswith("Mean absolute error")
    np.testing.assert_allclose(
        lines(axes)["plain model"], [[100, seen.exit_metrics()[-1]]]
    )


def test_curve_refuses_unknown_names(seen):
    with pytest.raises(ValueError, match="chosen thresholds by their names"):
        ee.plots.accuracy_cost_curve({"a": seen}, chosen={"b": 0.5})
    with pytest.raises(ValueError, match="Expected observations"):
        ee.plots.accuracy_cost_curve({})


def test_histogram_shows_shares_overall_and_by_class(seen):
    figure = ee.plots.exit_histogram(seen, thresholds=0.5)
    above, below = figure.axes
    widths = [bar.get_width() for bar in above.patches]
    np.testing.assert_allclose(widths, 100 * seen.exit_shares(0.5))
    assert [t.get_text() for t in above.get_yticklabels()] == list(NAMES)
    widths = np.array([bar.get_width() for bar in below.patches])
    shares = widths.reshape(3, 10)
    np.testing.assert_allclose(shares.sum(axis=0), 100)
    of_zero = seen.exit_index(0.5)[seen.labels == 0]
    np.testing.assert_allclose(
        shares[:, 0], 100 * np.bincount(of_zero, minlength=3) / len(of_zero)
    )


def test_many_classes_become_a_heat_map():
    seen = observations(classes=100)
    figure = ee.plots.exit_histogram(
        seen, thresholds=0.5, class_names=[f"class {k}" for k in range(100)]
    )
    (image,) = figure.axes[1].images
    assert image.get_array().shape == (100, 3)
    np.testing.assert_allclose(image.get_array().sum(axis=1), 100)
    assert "class" in figure.axes[1].get_yticklabels()[0].get_text()


def test_histogram_of_a_result():
    taken = np.array([0, 0, 1, 2])
    result = ee.ExitResult(
        predictions=np.zeros((4, 2)),
        exit_index=taken,
        score=np.array([0.9, 0.8, 0.7, np.nan]),
        relative_cost=np.ones(4),
    )
    (axes,) = ee.plots.exit_histogram(result).axes
    assert [t.get_text() for t in axes.get_yticklabels()] == list(NAMES)
    assert [t.get_text() for t in axes.texts] == ["50.0%", "25.0%", "25.0%"]
    figure = ee.plots.exit_histogram(
        result, labels=[0, 1, 1, 0], class_names=["cat", "dog"]
    )
    ticks = figure.axes[1].get_yticklabels()
    assert [t.get_text() for t in ticks] == ["cat", "dog"]
    early = ee.ExitResult(*[part[:3] for part in vars(result).values()])
    (axes,) = ee.plots.exit_histogram(early).axes
    assert [t.get_text() for t in axes.get_yticklabels()] == list(NAMES[:2])
    (axes,) = ee.plots.exit_histogram(early, exit_names=NAMES).axes
    assert len(axes.patches) == 3


def test_histogram_refuses_what_does_not_fit(seen):
    result = ee.ExitResult(np.zeros((1, 2)), np.array([2]), np.ones(1), None)
    with pytest.raises(ValueError, match="Expected thresholds"):
        ee.plots.exit_histogram(seen)
    with pytest.raises(ValueError, match="a name for each exit"):
        ee.plots.exit_histogram(result, exit_names=["exit_0"])
    with pytest.raises(ValueError, match="one integer class"):
        ee.plots.exit_histogram(result, labels=[1, 2])
    with pytest.raises(ValueError, match="at least one sample"):
        ee.plots.exit_histogram(seen.take([]), thresholds=0.5)


def test_risk_curve_shows_the_level_and_the_choice(report):
    figure = report.plot()
    drawn = lines(figure.axes[0])
    np.testing.assert_allclose(
        drawn["mean loss of 2000 samples"][:, 1], 100 * report.walk.risks
    )
    assert "allowed: 5 %" in drawn
    place = 100 * np.array([report.expected_relative_cost, report.risk_bound])
    np.testing.assert_allclose(
        drawn[f"chosen: {report.threshold:.4g}"], [place]
    )


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_figures_are_saved(seen, report, tmp_path, suffix):
    makers = {
        "curve": lambda path: ee.plots.accuracy_cost_curve(seen, path=path),
        "exits": lambda path: ee.plots.exit_histogram(
            seen, thresholds=report, path=path
        ),
        "risk": report.plot,
    }
    for name, make in makers.items():
        path = tmp_path / f"{name}.{suffix}"
        assert isinstance(make(path), Figure)
        assert path.stat().st_size > 4000


def test_neither_import_nor_use_touches_pyplot():
    program = (
        "import sys, numpy as np, keras_earlyexit.plots as plots;"
        "assert 'matplotlib' not in sys.modules;"
        "assert 'keras' not in sys.modules;"
        "from keras_earlyexit.results import ExitResult;"
        "z = np.zeros(3);"
        "plots.exit_histogram(ExitResult(z, z.astype(int), z, z));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_risk_curve_of_thresholds_per_exit(report, tmp_path):
    chosen = dataclasses.replace(report, threshold=(0.5, 0.75))
    figure = chosen.plot(tmp_path / "risk.png")
    assert "chosen: 0.5, 0.75" in lines(figure.axes[0])
    never = dataclasses.replace(report, threshold=(np.inf, np.inf))
    assert "chosen: nobody leaves early" in lines(never.plot().axes[0])
