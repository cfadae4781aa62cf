"""A judge that never finds fault proves nothing: here it has to."""

import pytest
from faults.history import FAIL, INFO, INVOKE, OK, Event, History, judge


def ok(t, id_, by=("edge", "cloud"), right=(True, True), rows=None):
    rows = len(by) if rows is None else rows
    value = {"rows": rows, "answered_by": list(by), "right": list(right)}
    return Event(t, "client", OK, id_, value)


def begin(t, id_):
    return Event(t, "client", INVOKE, id_)


def info(t, what):
    return Event(t, "nemesis", INFO, what)


def test_a_clean_history():
    found = judge([begin(0, "a"), begin(1, "b"), ok(2, "a"), ok(4, "b")])
    assert found.is_clean
    assert (found.requests, found.samples, found.slowest_s) == (2, 4, 3)


@pytest.mark.parametrize(
    "kind, events",
    {
        "lost": [begin(0, "a"), begin(1, "b"), ok(2, "b")],
        "doubled": [begin(0, "a"), ok(1, "a"), ok(2, "a")],
        "refused": [begin(0, "a"), Event(1, "client", FAIL, "a", "no")],
        "wrong": [begin(0, "a"), ok(1, "a", right=(True, False))],
        "short": [begin(0, "a"), ok(1, "a", rows=3)],
        "unexplained": [begin(0, "a"), ok(1, "a", by=("edge", "degraded"))],
    }.items(),
)
def test_what_is_wrong_is_found(kind, events):
    found = judge(events)
    assert not found.is_clean
    assert len(getattr(found, kind)) == 1
    for other in ("lost", "doubled", "refused", "wrong", "short"):
        assert other == kind or not getattr(found, other)


def test_degraded_answers_need_not_be_right_but_need_a_gap():
    def degraded(start, end):
        return [
            begin(start, f"{start}"),
            ok(end, f"{start}", by=("degraded",), right=(False,)),
        ]

    gap = [info(10, "gap"), info(12, "back")]
    for start, end, explained in (
        (5, 9, False),
        (9, 11, True),
        (11, 11.5, True),
        (13, 13.5, True),
        (14.5, 15, False),
    ):
        found = judge([*gap, *degraded(start, end)])
        assert found.is_clean is explained
        assert found.degraded == 1
    # A gap that never ends explains all that follows.
    assert judge([info(10, "gap"), *degraded(50, 60)]).is_clean


def test_a_history_is_kept_in_its_file(tmp_path):
    history = History(tmp_path / "history.jsonl")
    value = {"rows": 0, "answered_by": [], "right": []}
    history.add("client", INVOKE, "a")
    history.add("client", OK, "a", value)
    begun, ended = history.events
    assert (begun.type, ended.type, ended.value) == (INVOKE, OK, value)
    assert begun.t <= ended.t
    history.close()
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 2
