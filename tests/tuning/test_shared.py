"""Every subset and every threshold: the same as one after the other."""

import dataclasses
import time

import hypothesis
import numpy as np
import pytest
import search_problems as problems
from hypothesis import strategies as st

from keras_earlyexit.calibration import Observations
from keras_earlyexit.tasks import Head
from keras_earlyexit.tuning import pareto_front, shared
from keras_earlyexit.tuning.problem import evaluate, shared_levels


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(problems.problems(), st.integers(1, 4), st.data())
def test_front_is_that_of_all_configurations(one, max_exits, data):
    if data.draw(st.booleans()):
        required = data.draw(st.integers(0, one.num_candidates - 1))
        first = dataclasses.replace(one.costings[0], required=required)
        one = dataclasses.replace(one, costings=(first, *one.costings[1:]))
    levels = shared_levels(one.scores, 6)
    front, count = shared.search(one, levels, max_exits)
    known = problems.all_shared(one, levels, min(max_exits, one.num_candidates))
    assert count == len(known)
    rows = pareto_front(
        [point.cost for point in known], [point.value for point in known]
    )
    # Costs are sums in another order, so that equal ones may part.
    for row in rows:
        best = front.best_at(known[row].cost + 1e-9)
        assert best >= known[row].value - 1e-9
    for cost, value, (costing, bits, level) in zip(
        front.costs, front.values, front.keys, strict=True
    ):
        chosen = shared.members(bits)
        there = evaluate(one, chosen, [levels[level]] * len(chosen), costing)
        assert there.cost == pytest.approx(cost)
        assert there.value == pytest.approx(value)


def test_costs_and_values_are_those_of_observations():
    rng = np.random.default_rng(0)
    one = problems.problem(rng, 50, 3)
    costing = one.costings[0]
    blocks = np.cumsum(costing.blocks)
    costs = [*(costing.prefix + blocks), costing.final + blocks[-1]]
    labels = np.zeros(50, "int64")
    seen = Observations(
        scores=one.scores,
        predictions=[
            np.stack([right, 1 - right], axis=1).astype("float32")
            for right in one.values.T
        ],
        labels=labels,
        relative_costs=np.array(costs),
        exit_names=("exit_0", "exit_1", "exit_2", "final"),
        head=Head(2, "softmax", "classification"),
    )
    found = evaluate(one, (0, 1, 2), (0.3, 0.1, 0.2))
    assert found.cost == pytest.approx(seen.mean_cost((0.3, 0.1, 0.2)))
    assert found.value == pytest.approx(seen.accuracy((0.3, 0.1, 0.2)))


def test_many_times_faster_than_one_after_the_other():
    one = problems.problem(np.random.default_rng(0), 2000, 12)
    levels = shared_levels(one.scores, 20)
    start = time.process_time()
    front, count = shared.search(one, levels)
    fast = (time.process_time() - start) / count
    some = list(problems.subsets(one))[::50]
    start = time.process_time()
    for chosen in some:
        for level in levels:
            found = evaluate(one, chosen, [level] * len(chosen))
            assert front.best_at(found.cost + 1e-9) >= found.value - 1e-9
    slow = (time.process_time() - start) / (len(some) * len(levels))
    assert slow > 10 * fast
