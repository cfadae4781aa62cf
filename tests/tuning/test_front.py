import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from keras_earlyexit.tuning import pareto_front

POINTS = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=0, max_size=30
)


def beats(one, other):
    return one[0] <= other[0] and one[1] >= other[1] and one != other


@hypothesis.given(POINTS)
def test_front_is_what_nothing_beats(points):
    costs = [cost for cost, _ in points]
    values = [value for _, value in points]
    rows = pareto_front(costs, values).tolist()
    unbeaten = [
        i
        for i, point in enumerate(points)
        if not any(beats(other, point) for other in points)
        and point not in points[:i]
    ]
    assert sorted(rows) == unbeaten
    assert [points[i] for i in rows] == sorted(points[i] for i in rows)


def test_failed_trials_and_infinity():
    costs = [np.nan, 0.2, 0.1, np.inf, 0.3]
    values = [1.0, np.nan, -np.inf, 0.9, 0.5]
    assert pareto_front(costs, values).tolist() == [2, 4, 3]


@pytest.mark.parametrize(
    ("costs", "values"),
    [([1, 2], [1]), ([[1]], [[1]]), (["a"], [1]), (3, 4)],
)
def test_other_things_are_refused(costs, values):
    with pytest.raises(ValueError, match="Received"):
        pareto_front(costs, values)
