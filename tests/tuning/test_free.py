"""Branch and bound: the best that there is, or a gap that is true."""

import dataclasses

import hypothesis
import numpy as np
import pytest
import search_problems as problems
from hypothesis import strategies as st

from keras_earlyexit.tuning import free, pareto_front
from keras_earlyexit.tuning.problem import own_levels
from keras_earlyexit.tuning.running_front import RunningFront


def best_of(known, goal):
    costs = np.array([point.cost for point in known])
    values = np.array([point.value for point in known])
    fits = goal.meets(costs, values)
    if not fits.any():
        return None
    return goal.worth(costs, values)[fits].max()


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    problems.problems(costings=st.just(1)),
    st.floats(0, 2),
    st.integers(1, 4),
    st.booleans(),
    st.floats(0.05, 1.2),
    st.booleans(),
)
def test_finds_the_best_there_is(one, rate, max_exits, cheap, limit, cut):
    max_exits = min(max_exits, one.num_candidates)
    if cut:
        costing = dataclasses.replace(one.costings[0], required=0)
        one = dataclasses.replace(one, costings=(costing,))
    levels = own_levels(one.scores, 4)
    known = problems.all_own(one, levels, max_exits)
    goal = free.Goal(max_cost=limit, rate=rate)
    if cheap:
        goal = free.Goal(min_value=limit, rate=rate + 0.01)
    front = RunningFront(1 + 2 * one.num_candidates)
    search = free.Search(one, levels, goal, max_exits, 0, front)
    found = search.run(60)
    wanted = best_of(known, goal)
    assert found.gap == 0
    if wanted is None:
        assert found.best is None
    else:
        assert found.worth == pytest.approx(wanted)
        assert goal.worth(found.best.cost, found.best.value) == pytest.approx(
            wanted
        )
        assert goal.meets(found.best.cost, found.best.value)
    for cost, value, key in zip(
        front.costs, front.values, front.keys, strict=True
    ):
        there = free.configuration_of(one, levels, key)
        assert there.cost == pytest.approx(cost)
        assert there.value == pytest.approx(value)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    problems.problems(st.integers(3, 5), st.just(1)),
    st.floats(0, 1),
    st.floats(0.2, 1.0),
    st.integers(0, 6),
)
def test_gap_is_true_when_time_is_up(one, rate, limit, nodes):
    levels = own_levels(one.scores, 3)
    goal = free.Goal(max_cost=limit, rate=rate)
    search = free.Search(one, levels, goal, one.num_candidates, 0)
    found = search.run(nodes, clock=lambda: search.nodes)
    wanted = best_of(problems.all_own(one, levels), goal)
    if wanted is not None:
        assert found.worth + found.gap >= wanted - 1e-9


def test_whole_front_with_two_exits():
    one = problems.problem(np.random.default_rng(1), 60, 4)
    levels = own_levels(one.scores, 5)
    front = RunningFront(9)
    goal = free.Goal(max_cost=1.0, rate=0.3)
    free.Search(one, levels, goal, 2, 0, front).run(60)
    known = problems.all_own(one, levels, 2)
    rows = pareto_front(
        [point.cost for point in known], [point.value for point in known]
    )
    for row in rows:
        best = front.best_at(known[row].cost + 1e-9)
        assert best >= known[row].value - 1e-9


def test_what_is_known_stays_if_nothing_is_better():
    one = problems.problem(np.random.default_rng(2), 30, 3)
    levels = own_levels(one.scores, 4)
    goal = free.Goal(max_cost=1.0, rate=0.3)
    best = free.Search(one, levels, goal, 3, 0).run(60).best
    search = free.Search(one, levels[:2] + [levels[2][:2]], goal, 3, 0)
    search.start_from(best)
    assert search.run(60).best.value == best.value
