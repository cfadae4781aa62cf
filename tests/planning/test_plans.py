"""Plans as values: what they choose and say, as JSON, and as a picture."""

import dataclasses
import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from keras_earlyexit.cost.measured import Link
from keras_earlyexit.planning.plans import Plan, PlanRow


def row(name, seconds, num_bytes=100, memory=1000, way="cut", **fields):
    return PlanRow(
        way=way,
        name=name,
        layer="",
        seconds=seconds,
        edge_seconds=seconds / 4,
        link_seconds=seconds / 2,
        cloud_seconds=seconds / 4,
        bytes_up=num_bytes,
        bytes_down=0,
        parameter_bytes=memory // 2,
        optimizer_bytes=0,
        activation_bytes=memory - memory // 2,
        share=1.0,
        **fields,
    )


def make_plan(**fields):
    fields = {
        "model": "small",
        "mode": "infer",
        "objective": "seconds",
        "batch_size": 1,
        "link": Link(1e6, 0.01),
        "rows": [
            row("exit_0", 3.0, 500, 1000),
            row("exit_1", 2.0, 300, 3000),
            row("exit_2", 4.0, 100, 2000),
            row("edge", 1.0, 0, 5000, way="edge"),
            row("cloud", 6.0, 50, 0, way="cloud"),
        ],
        "notes": ["Figures are made up."],
        **fields,
    }
    return Plan(**fields)


def test_best_is_the_least_of_the_cuts():
    plan = make_plan()
    assert plan.best.name == "exit_1" and plan.choice.name == "edge"
    assert [r.name for r in plan.cuts] == ["exit_0", "exit_1", "exit_2"]
    assert [r.name for r in plan.references] == ["edge", "cloud"]
    assert make_plan(objective="bytes").best.name == "exit_2"


def test_best_is_argmin_for_any_values():
    rng = np.random.default_rng(0)
    for _ in range(50):
        found = rng.random((6, 3))
        rows = [
            row(f"exit_{k}", seconds, num_bytes, int(1000 * memory))
            for k, (seconds, num_bytes, memory) in enumerate(found)
        ]
        plan = make_plan(rows=rows, memory_limit=700)
        fits = [r for r in rows if r.edge_bytes <= 700]
        least = min((r.seconds for r in fits), default=None)
        assert (plan.best and plan.best.seconds) == least


def test_equal_seconds_take_fewer_bytes():
    rows = [row("exit_0", 1.0, 200), row("exit_1", 1.0, 100)]
    plan = make_plan(rows=rows)
    assert plan.best.name == "exit_1"
    assert plan.why(rows[0]) == "as long, 2.00 times the bytes"


def test_memory_limit_excludes():
    plan = make_plan(memory_limit=2500)
    assert plan.best.name == "exit_0" and plan.choice.name == "exit_0"
    assert plan.why(plan.row("exit_1")) == (
        "needs 3 kB at the edge, 2.5 kB are allowed"
    )
    plan = make_plan(memory_limit=10)
    assert plan.best is None and plan.choice.name == "cloud"
    assert "no cut fits the memory" in plan.advice
    assert "raw inputs" in plan.advice
    plan = make_plan(rows=make_plan().rows[:4], memory_limit=10)
    assert plan.choice is None
    assert plan.advice.startswith("Nothing fits: 10 B are allowed")
    assert plan.why(plan.rows[0]).startswith("needs 1 kB")
    str(plan)


def test_why_the_others_lose():
    plan = make_plan()
    assert plan.why(plan.best) == "the best cut"
    assert plan.why(plan.row("exit_2")) == (
        "2.00 times as long; mostly link (50%)"
    )
    alone = dataclasses.replace(
        plan.row("edge"), edge_seconds=1, link_seconds=0, cloud_seconds=0
    )
    assert plan.why(alone) == "0.50 times as long; all edge"
    fewest = make_plan(objective="bytes")
    assert fewest.why(fewest.row("exit_1")) == "3.00 times the bytes"


def test_advice():
    assert make_plan().advice == (
        "Do not cut, take the edge alone: 1 s and 0 B a sample; the best cut, "
        "exit_1, takes 2 s and 300 B a sample."
    )
    plan = make_plan(memory_limit=4000, mode="train")
    assert plan.advice == "Cut at exit_1: 2 s and 300 B a batch."
    rows = [row("exit_0", 2.0), row("exit_0", 1.0, way="split_learning")]
    assert "gradients back" in make_plan(rows=rows).advice


def test_rows_by_name():
    rows = [
        row("exit_0", 1.0, epoch_seconds=100.0),
        row("exit_0", 5.0, way="split_learning"),
    ]
    plan = make_plan(mode="train", rows=rows)
    assert plan.row("exit_0").seconds == 1.0
    assert plan.row("exit_0", "split_learning").seconds == 5.0
    with pytest.raises(ValueError, match="one of exit_0. Received: 'exit_9'"):
        plan.row("exit_9")


def test_table_says_it_all():
    lines = str(make_plan()).splitlines()
    assert "1 Mbit/s" in lines[0] and "round trip 10 ms" in lines[0]
    assert lines[1].split()[:4] == ["cut", "at", "time", "edge"]
    assert lines[3].startswith("* exit_1") and "2 s" in lines[3]
    assert lines[5].startswith("! edge alone")
    assert lines[-1] == "Figures are made up."


def test_a_long_plan_shows_the_best_cuts():
    rows = [row(f"layer_{k}", 1.0 + (k - 70) ** 2) for k in range(80)]
    text = str(make_plan(rows=rows))
    assert "* layer_70" in text and "layer_3 " not in text
    assert "64 worse cuts are not shown." in text


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0, " 0 "), (1e-7, "< 1 us"), (2e-5, "20 us"), (0.5, "500 ms")],
)
def test_units_of_time(seconds, shown):
    assert shown in str(make_plan(rows=[row("exit_0", seconds)]))


def test_json_round_trip(tmp_path):
    for plan in (
        make_plan(),
        make_plan(memory_limit=10, exit_rates=np.array([0.5, 0.25, 0.25])),
        make_plan(mode="train", rows=[row("a", 1.0, epoch_seconds=9.0)]),
    ):
        assert Plan.from_json(plan.to_json()) == plan
        plan.save(tmp_path / "plan.json")
        assert Plan.load(tmp_path / "plan.json") == plan
        assert hash(plan) == hash(Plan.load(tmp_path / "plan.json"))
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], "bundle", "JSON of format"),
        (["version"], 2, "version 1. Received: version 2"),
        (["extra"], 1, "the keys"),
        (["mode"], "dream", "'infer' or 'train'. Received: 'dream'"),
        (["objective"], None, "'seconds' or 'bytes'"),
        (["batch_size"], 0, "at least 1"),
        (["rows"], [], "at least one row"),
        (["rows"], 3, "'rows' to be a list"),
        (["rows", 0, "way"], "fly", "`way` to be 'cut'"),
        (["rows", 0, "seconds"], float("nan"), "finite"),
        (["rows", 0, "bytes_up"], -1, "at least 0"),
        (["rows", 0, "parameter_bytes"], 1.5, "an integer"),
        (["link"], {"bits_per_second": 1}, "the keys"),
        (["link", "bits_per_second"], 0, "above 0"),
        (["memory_limit"], "1", "a number"),
        (["notes"], "text", "a sequence"),
    ],
)
def test_foreign_json_is_looked_at(path, value, message):
    content = inner = json.loads(make_plan().to_json())
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises((TypeError, ValueError), match=message):
        Plan.from_json(json.dumps(content))


def test_plans_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_plan().model = "other"


def test_picture_holds_the_figures(tmp_path):
    plan = make_plan(memory_limit=4000)
    figure = plan.plot(tmp_path / "plan.png")
    assert isinstance(figure, Figure)
    assert (tmp_path / "plan.png").stat().st_size > 5000
    time, traffic, memory = figure.axes
    labels = [text.get_text() for text in time.get_yticklabels()]
    assert labels == [
        *("exit_0", "best cut: exit_1", "exit_2"),
        *("edge alone", "cloud alone"),
    ]
    (marks,) = time.lines
    assert list(marks.get_xdata()) == [3, 2, 4, 1, 6]
    widths = np.array([bar.get_width() for bar in traffic.patches[:5]])
    np.testing.assert_allclose(widths, [500, 300, 100, 0, 50])
    (limit,) = memory.lines
    assert limit.get_xdata()[0] == pytest.approx(4)
    pale = [bar.get_alpha() for bar in memory.patches[:5]]
    assert pale == [1.0, 1.0, 1.0, 0.3, 1.0]


def test_picture_without_a_cut_that_fits():
    plan = make_plan(memory_limit=10, mode="train")
    assert len(plan.plot().axes) == 3
